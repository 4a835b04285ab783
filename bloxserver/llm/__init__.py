"""The access to language models. `gateway.LanguageModels` is the only one; nothing else calls a provider."""
