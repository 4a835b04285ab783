"""The part of google-re2, which has no types, that BloxServer uses."""

class error(Exception): ...  # noqa: N801

class Options:
    max_mem: int
    log_errors: bool
    never_capture: bool

class _Regexp:
    @property
    def programsize(self) -> int: ...
    @property
    def reverseprogramsize(self) -> int: ...
    def search(self, text: bytes) -> object | None: ...

def compile(pattern: bytes, options: Options) -> _Regexp: ...
def purge() -> None: ...
