"""Who can reach whom under the network policies: computed from them, and compared with the arrows of the design.

A connection needs both ends: the policies of the caller let it out and those of the called let it in. Each end is
compared by itself, so that neither is wider than the other. What a policy may say beyond what is read here is refused.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

import pytest

from tests.unit.deploy.kubernetes_overlays import (
    OVERLAYS,
    ROOT,
    RUNS,
    TRACED,
    Document,
    matches,
    objects,
    pod_of,
    pods,
)

COMPONENT = "app.kubernetes.io/component"
HERE = {"kubernetes.io/metadata.name": "mmr1"}
MEMBERS = ("learner", "rollout-server")
PORTS = (53, 80, 443, 4317, 4318, 6379, 8000, 9390, 9400, 29390, 40000, 50051)

Arrow = tuple[str, str, int]


@dataclass(frozen=True)
class Party:
    name: str
    labels: dict[str, str]
    namespace: dict[str, str]
    address: str = "10.244.0.7"  # pods have one of the cluster's; no policy may go by it


STRANGERS = (
    Party("stranger", {COMPONENT: "learner"}, {"kubernetes.io/metadata.name": "elsewhere"}),
    Party("unlabelled", {}, HERE),
    Party("monitoring", {}, {"kubernetes.io/metadata.name": "monitoring"}),
    Party(
        "collector",
        {"app.kubernetes.io/name": "opentelemetry-collector"},
        {"kubernetes.io/metadata.name": "monitoring"},
    ),
    Party("keda", {}, {"kubernetes.io/metadata.name": "keda"}),
    Party("dns", {"k8s-app": "kube-dns"}, {"kubernetes.io/metadata.name": "kube-system"}),
    Party("node's dns", {}, {}, "169.254.20.10"),
    Party("its neighbour", {}, {}, "169.254.20.11"),
    Party("metadata", {}, {}, "169.254.169.254"),  # a cloud's: whoever reaches it has the node's rights
    Party("internet", {}, {}, "93.184.216.34"),
    Party("trainer", {COMPONENT: "reward-client"}, {"kubernetes.io/metadata.name": "elsewhere"}),
)


def parties(overlay: str) -> list[Party]:
    return [*(Party(pod.component, pod.labels, HERE) for pod in pods(overlay)), *STRANGERS]


def is_peer(peer: Document, party: Party) -> bool:
    if peer.keys() == {"ipBlock"}:
        assert peer["ipBlock"].keys() == {"cidr"}, peer
        return ipaddress.ip_address(party.address) in ipaddress.ip_network(peer["ipBlock"]["cidr"])
    assert peer.keys() <= {"podSelector", "namespaceSelector"}, peer
    if "namespaceSelector" in peer:
        if not matches(peer["namespaceSelector"], party.namespace):
            return False
    elif party.namespace != HERE:
        return False
    return matches(peer.get("podSelector", {}), party.labels)


def lets(policies: list[Document], direction: str, party: Party, other: Party, port: int) -> bool:
    """Whether `party`'s policies let it talk with `other` over TCP at `port`. Elsewhere than here there are none."""
    if party.namespace != HERE:
        return True
    own = [p["spec"] for p in policies if matches(p["spec"]["podSelector"], party.labels)]
    own = [spec for spec in own if direction.capitalize() in spec["policyTypes"]]
    assert own, f"{party.name} is open to everybody"
    for rule in (rule for spec in own for rule in spec.get(direction, [])):
        assert rule.keys() == {"ports", "from" if direction == "ingress" else "to"}, rule
        numbers = [range(p["port"], p.get("endPort", p["port"]) + 1) for p in rule["ports"] if p["protocol"] == "TCP"]
        peers = rule["from" if direction == "ingress" else "to"]
        assert peers, "no peers are all peers"
        if any(port in each for each in numbers) and any(is_peer(peer, other) for peer in peers):
            return True
    return False


def arrows(overlay: str, direction: str) -> set[Arrow]:
    """(caller, called, port) that one end's policies let happen, where that end is here."""
    policies, found = objects(overlay, "NetworkPolicy"), set()
    for caller in parties(overlay):
        for called in parties(overlay):
            one, other = (called, caller) if direction == "ingress" else (caller, called)
            if one.namespace == HERE:
                allowed = [port for port in PORTS if lets(policies, direction, one, other, port)]
                found |= {(caller.name, called.name, port) for port in allowed}
    return found


def of_the_design(overlay: str) -> set[Arrow]:
    """One prompt's way round, weights and gradients, and who watches; name resolution and traces apart."""
    overlay = overlay.removesuffix("+tracing")
    if overlay == "reward-only":
        return {("reward-client", "reward-server", 8000), ("trainer", "reward-server", 8000)}
    wanted = {
        (member, service, port) for member in MEMBERS for service, port in (("redis", 6379), ("reward-server", 8000))
    }
    wanted |= {(one, other, port) for one in MEMBERS for other in MEMBERS for port in PORTS}
    if overlay != "cpu":
        wanted |= {("keda", "redis", 6379)}
        wanted |= {
            (watcher, name, port)
            for watcher in ("monitoring", "collector")  # two pods of one namespace
            for name, port in (("reward-server", 8000), ("rollout-server", 9400), ("learner", 9390))
        }
    return wanted


@pytest.mark.parametrize("overlay", (*OVERLAYS, *TRACED))
def test_pods_let_in_the_arrows_of_the_design_and_nobody_else(overlay: str) -> None:
    assert arrows(overlay, "ingress") == of_the_design(overlay)


@pytest.mark.parametrize("overlay", (*OVERLAYS, *TRACED))
def test_pods_let_out_the_arrows_of_the_design_and_names(overlay: str) -> None:
    here = {party.name for party in parties(overlay) if party.namespace == HERE}
    wanted = {arrow for arrow in of_the_design(overlay) if arrow[0] in here}
    if overlay in TRACED:
        wanted |= {(service, "collector", 4318) for service in (*MEMBERS, "reward-server") if service in here}
    assert arrows(overlay, "egress") == wanted | {(name, dns, 53) for name in here for dns in ("dns", "node's dns")}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_names_are_asked_for_over_udp_too(overlay: str) -> None:
    (dns,) = [each for each in objects(overlay, "NetworkPolicy") if each["metadata"]["name"] == "dns"]
    for rule in dns["spec"]["egress"]:
        assert rule["ports"] == [{"port": 53, "protocol": p} for p in ("UDP", "TCP")]


@pytest.mark.parametrize("overlay", RUNS)
def test_every_connection_of_the_security_page_is_let_through(overlay: str) -> None:
    """docs/security.md lists the connections of a run; a new one there needs an arrow here."""
    names = {
        "learner": "learner",
        "rollout server": "rollout-server",
        "Redis": "redis",
        "reward server": "reward-server",
    }
    rows = re.findall(r"^\| ([^|]+) → ([^|(]+) \(?[^|]*\|", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE)
    pairs = {
        (names[caller.strip()], names[called.strip()])
        for row in rows
        for caller in row[0].split(",")
        for called in [row[1]]
    }
    assert len(pairs) == 5
    ports = {"redis": 6379, "reward-server": 8000, "rollout-server": 50051}
    wanted = {(caller, called, ports[called]) for caller, called in pairs}
    assert wanted <= arrows(overlay, "ingress") & arrows(overlay, "egress")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_pod_is_in_the_policies_by_its_component(overlay: str) -> None:
    for pod in pods(overlay):
        assert pod_of(overlay, pod.component) == pod


def test_the_policies_of_two_overlays_in_one_namespace_add_up() -> None:
    """The last one applied would replace another of its name, and cut off what that one lets through."""
    found: dict[str, Document] = {}
    for overlay in (*OVERLAYS, *TRACED):
        for policy in objects(overlay, "NetworkPolicy"):
            name, spec = policy["metadata"]["name"], policy["spec"]
            assert found.setdefault(name, spec) == spec, f"{overlay}: {name}"


def test_the_object_store_lies_outside_every_private_network() -> None:
    import yaml

    path = ROOT / "deploy" / "kubernetes" / "components" / "object-store" / "network.yaml"
    ((peer,),) = [rule["to"] for rule in yaml.safe_load(path.read_text())["spec"]["egress"]]
    refused = [ipaddress.ip_network(each) for each in peer["ipBlock"]["except"]]
    for address in ("10.96.0.10", "172.20.1.1", "192.168.7.7", "169.254.169.254", "100.64.0.1"):
        assert any(ipaddress.ip_address(address) in each for each in refused)
    assert not any(ipaddress.ip_address("52.216.1.1") in each for each in refused)
