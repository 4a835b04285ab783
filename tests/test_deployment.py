"""The Compose files, Kubernetes manifests and proxy configuration match the program and each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
import typer.main
import yaml

from bloxserver.cli import app
from bloxserver.settings import Settings

ROOT = Path(__file__).parents[1]
KUBERNETES = ROOT / "deploy/kubernetes"
SETTINGS = {name.upper() for name in Settings.model_fields}
MARGIN_SECONDS = 20
"""The margin beyond `SHUTDOWN_GRACE_SECONDS` in docs/deployment.md."""


class ComposeLoader(yaml.SafeLoader):
    """A YAML loader for `!reset`, by which a Compose file removes values of another."""


ComposeLoader.add_constructor("!reset", lambda loader, node: None)


def compose(name: str) -> dict[str, Any]:
    services: dict[str, Any] = yaml.load((ROOT / name).read_text(), ComposeLoader)["services"]  # noqa: S506
    return services


def of_kind(kind: str) -> dict[str, Any]:
    """Return the manifests of a kind by name."""
    return {each["metadata"]["name"]: each for each in manifests() if each["kind"] == kind}


def manifests() -> Iterator[dict[str, Any]]:
    for path in sorted(KUBERNETES.glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


def pods() -> dict[str, dict[str, Any]]:
    """Return the pod specs by the name of their workload."""
    workloads = {**of_kind("Deployment"), **of_kind("Job")}
    return {name.removeprefix("bloxserver-"): each["spec"]["template"]["spec"] for name, each in workloads.items()}


def container(pod: dict[str, Any]) -> dict[str, Any]:
    [only] = pod["containers"]
    return dict(only)


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def options_of(command: list[str]) -> tuple[set[str], set[str]]:
    """Return the options in a command line, and the options of that command."""
    program, name, *given = command
    assert program == "bloxserver"
    known = typer.main.get_command(app).commands[name].params  # type: ignore[attr-defined]
    return set(given), {option for parameter in known for option in (*parameter.opts, *parameter.secondary_opts)}


class TestCommands:
    @pytest.mark.parametrize("name", ["api", "worker", "migrate"])
    def test_referenced_files_exist(self, name: str) -> None:
        for command in (compose("docker-compose.yml")[name]["command"], container(pods()[name])["command"]):
            given, known = options_of(command)
            assert given <= known


class TestCompose:
    def test_overlay_changes_existing_services(self) -> None:
        added = set(compose("docker-compose.replicas.yml")) - set(compose("docker-compose.yml"))
        assert added == {"proxy"}

    def test_replicas_publish_no_fixed_port(self) -> None:
        services = compose("docker-compose.replicas.yml")
        repeated = {name for name, service in services.items() if service.get("deploy", {}).get("replicas", 1) > 1}
        assert repeated == {"api", "worker"}
        assert services["api"]["ports"] is None
        assert "ports" not in compose("docker-compose.yml")["worker"]

    def test_unset_variables_have_their_defaults(self) -> None:
        handed = compose("docker-compose.yml")["worker"]["environment"]
        defaults = {name: Settings.model_fields[name.lower()].default for name in handed}
        for name, text in handed.items():
            if given := re.fullmatch(rf"\$\{{{name}:-(.*)\}}", text):
                assert given[1] == ("" if defaults[name] in (None, ()) else str(defaults[name])), name

    @pytest.mark.parametrize("named", ["CONCURRENCY", "RETENTION", "DATABASE_POOL_SIZE", "LLM_", "SMTP_"])
    def test_documented_variables_can_be_set(self, named: str) -> None:
        handed = compose("docker-compose.yml")["worker"]["environment"]
        assert {name for name in SETTINGS if named in name} - {"LLM_TIMEOUT_SECONDS"} <= handed.keys()

    def test_containers_have_a_sufficient_stop_grace_period(self) -> None:
        services = compose("docker-compose.yml")
        drain = Settings.model_fields["shutdown_grace_seconds"].default
        for name in ("api", "worker"):
            assert "SHUTDOWN_GRACE_SECONDS" not in services[name]["environment"]
            assert seconds(services[name]["stop_grace_period"]) >= drain + MARGIN_SECONDS

    def test_health_checks_of_a_blocked_process_fail(self) -> None:
        """It accepts the connection and does not answer, so the check has to end by itself."""
        for name in ("api", "worker"):
            healthcheck = compose("docker-compose.yml")[name].get("healthcheck")
            text = " ".join(healthcheck["test"]) if healthcheck else (ROOT / "Dockerfile").read_text()
            limit = healthcheck["timeout"] if healthcheck else re.findall(r"--timeout=(\d+s)", text)[0]
            [request] = re.findall(r"timeout=(\d+)\)", text)
            assert 0 < int(request) < seconds(limit), name

    def test_proxy_configuration_refers_to_existing_services(self) -> None:
        [mount] = compose("docker-compose.replicas.yml")["proxy"]["volumes"]
        text = (ROOT / mount.partition(":")[0]).read_text()
        assert "option httpchk GET /health/ready" in text
        assert re.findall(r"server-template \S+ \d+ (\S+)", text) == ["api:8000"]
        [server] = re.findall(r"timeout server (\d+)s", text)
        assert int(server) > 60, "longer than ?wait may take"


class TestKubernetes:
    def test_kustomization_lists_all_required_files(self) -> None:
        listed = set(yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"])
        optional = {"kustomization.yaml", "secret.example.yaml", "autoscaling.yaml"}
        assert listed == {path.name for path in KUBERNETES.glob("*.yaml")} - optional

    def test_variables_are_settings(self) -> None:
        given = {*of_kind("ConfigMap")["bloxserver"]["data"], *of_kind("Secret")["bloxserver"]["stringData"]}
        assert given <= SETTINGS
        assert {"DATABASE_URL", "API_KEY_ENCRYPTION_KEY", "CLERK_ISSUER", "WEBHOOK_BASE_URL"} <= given

    def test_values_are_valid_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in SETTINGS:
            monkeypatch.delenv(name, raising=False)
        generated = {"API_KEY_ENCRYPTION_KEY": token_hex(32), "METRICS_TOKEN": token_hex(32)}
        secret = of_kind("Secret")["bloxserver"]["stringData"] | generated
        for name, value in {**of_kind("ConfigMap")["bloxserver"]["data"], **secret}.items():
            assert isinstance(value, str), name
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("ENV", "production")
        monkeypatch.setenv("ENABLE_DOCS", "false")
        Settings(_env_file=None).check_startup()

    @pytest.mark.parametrize("name", ["api", "worker", "migrate"])
    def test_pods_have_settings_secrets_and_minimal_privileges(self, name: str) -> None:
        pod = pods()[name]
        only = container(pod)
        assert only["envFrom"] == [{"configMapRef": {"name": "bloxserver"}}, {"secretRef": {"name": "bloxserver"}}]
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert f"USER {pod['securityContext']['runAsUser']}:" in (ROOT / "Dockerfile").read_text()
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in only["resources"]["limits"]

    @pytest.mark.parametrize(("name", "setting"), [("api", "PORT"), ("worker", "WORKER_PORT")])
    def test_probes_use_the_ports_of_the_image(self, name: str, setting: str) -> None:
        only = container(pods()[name])
        [port] = only["ports"]
        assert f" {setting}={port['containerPort']}" in (ROOT / "Dockerfile").read_text()
        probes = {kind: only[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
        assert {kind: probe["path"] for kind, probe in probes.items()} == {
            "startup": "/health/live",
            "readiness": "/health/ready",
            "liveness": "/health/live",
        }
        assert {probe["port"] for probe in probes.values()} == {port["name"]}

    @pytest.mark.parametrize("name", ["api", "worker"])
    def test_probes_of_a_blocked_process_fail_after_it_is_killed(self, name: str) -> None:
        probes = [container(pods()[name])[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]
        assert all(probe["timeoutSeconds"] > 0 for probe in probes)
        liveness = probes[-1]
        restart = liveness["periodSeconds"] * (liveness["failureThreshold"] - 1) + liveness["timeoutSeconds"]
        assert restart > Settings.model_fields["event_loop_timeout"].default

    @pytest.mark.parametrize("name", ["api", "worker"])
    def test_pods_have_a_sufficient_termination_grace_period(self, name: str) -> None:
        pod = pods()[name]
        drain = int(of_kind("ConfigMap")["bloxserver"]["data"]["SHUTDOWN_GRACE_SECONDS"])
        pause = container(pod).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
        assert pod["terminationGracePeriodSeconds"] >= int(pause[-1]) + drain + MARGIN_SECONDS

    def test_selectors_match_their_pods(self) -> None:
        deployments = of_kind("Deployment")
        labels = {name: each["spec"]["template"]["metadata"]["labels"] for name, each in deployments.items()}
        for name, deployment in deployments.items():
            assert deployment["spec"]["selector"]["matchLabels"] == labels[name]
            assert of_kind("PodDisruptionBudget")[name]["spec"]["selector"]["matchLabels"] == labels[name]
        assert of_kind("Service")["bloxserver"]["spec"]["selector"] == labels["bloxserver-api"]
        assert {each["spec"]["scaleTargetRef"]["name"] for each in of_kind("HorizontalPodAutoscaler").values()} == set(
            deployments
        )


class TestAlerts:
    RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"

    def test_rules_use_metrics_that_are_documented(self) -> None:
        used = set(re.findall(r"bloxserver_[a-z_]+", self.RULES.read_text().partition("groups:")[2]))
        documented = set(re.findall(r"`(bloxserver_[a-z_]+)`", (ROOT / "docs" / "observability.md").read_text()))
        assert {name.removesuffix("_bucket") for name in used} <= documented
        assert len(used) > 10

    def test_each_alert_is_explained(self) -> None:
        [group] = yaml.safe_load(self.RULES.read_text())["groups"]
        names = [rule["alert"] for rule in group["rules"]]
        assert all(rule["expr"].strip() for rule in group["rules"])
        explained = re.findall(
            r"`([A-Z][A-Za-z]+)`", (ROOT / "docs" / "observability.md").read_text().partition("## Alerts")[2]
        )
        assert len(names) == len(set(names)) > 10
        assert set(names) <= set(explained)
