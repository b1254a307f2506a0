# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster in Python: what ``llm cluster`` does, as methods with typed results.

    from llm_cluster_ops import Cluster

    cluster = Cluster("~/clusters/office")
    cluster.drain("node1", reason="new disk")

What fails raises a ClusterError; its message says what to do. A playbook that fails raises a RunFailedError, whose
``run`` tells which host failed where.
"""

from __future__ import annotations

import contextlib
import getpass
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _create, _folder, _inventory, _logs, _models
from ._errors import ClusterError, RunFailedError, UsageError, near
from ._inventory import Inventory, Node
from ._logs import LogLine
from ._models import NewModel
from ._runner import Run, Silent, Watcher, run_playbook

# Who looks wants an answer now: a host that does not even accept a connection meanwhile is told of as away.
QUICK = {"connect_timeout": 2, "look_timeout": 6}
# What module balancer_peer says where a node gets no requests: the balancer does not have it, or does not run (yet).
NO_REQUESTS = ("has no node or peer", "There is no admin socket")
MODEL_FIELDS = ("name", "kind", "digest", "wanted", "note")
PLAYBOOKS = Path(__file__).parent / "playbooks"

# What of site.yml a further model concerns.
MODEL_TAGS = "firewall,llama_cpp,models,balancer,client,verify"

__all__ = [
    "Cluster",
    "Created",
    "LogLine",
    "Model",
    "ModelState",
    "Node",
    "NodeStatus",
    "Removed",
    "Run",
    "Status",
    "Used",
]


@dataclass(frozen=True)
class Created:
    """A new cluster: its folder, and where its vault's password is."""

    cluster: Cluster
    password_file: Path


@dataclass(frozen=True)
class Removed:
    """A node that is out; ``kept`` is where its variables are, if they held more than the commands write."""

    node: str
    kept: Path | None


@dataclass(frozen=True)
class Used:
    """How this user's llm uses the endpoint now."""

    url: str
    models: list[str]
    key_name: str
    has_key: bool
    # What SSL_CERT_FILE must name, where the endpoint's certificate is one that machines don't know.
    trust_file: Path | None


@dataclass(frozen=True)
class ModelState:
    """One model on one node; ``kind`` is ok, missing, partial, wrong, corrupt, stale or extra."""

    name: str
    kind: str
    digest: str
    wanted: str
    note: str


@dataclass(frozen=True)
class NodeStatus:
    """One node as status.yml tells it."""

    name: str
    state: str
    drained_by: list[str]
    engine: str | None
    engine_version: str | None
    slots_busy: int | None
    slots_total: int | None
    drift: str
    models: list[ModelState]
    notes: list[str]


@dataclass(frozen=True)
class Status:
    """How things stand; ``data`` is all that status.yml says to programs."""

    nodes: list[NodeStatus]
    data: dict[str, Any]
    run: Run


@dataclass(frozen=True)
class Model:
    """A model: the nodes of each version that is served."""

    name: str
    versions: dict[str, list[str]]
    missing: list[str]


class Cluster:
    """A cluster's folder and what can be done with it.

    :param directory: the folder; without it LLM_CLUSTER_DIR, the current folder or one above it
    :param watcher: sees the progress of long work
    """

    def __init__(self, directory: str | Path | None = None, watcher: Watcher | None = None) -> None:
        self.folder = _folder.find(directory)
        self.watcher = watcher or Silent()

    @classmethod
    def init(
        cls,
        directory: str | Path = ".",
        *,
        name: str | None = None,
        user: str | None = None,
        balancer: str | None = None,
    ) -> Created:
        """Make a cluster's folder, with a first key in its vault.

        :param name: the folder's own by default
        :param user: who logs in to the hosts; by default the one who calls this
        :param balancer: HOST or HOST:PORT of the first balancer
        """
        folder = Path(directory).expanduser().absolute()
        host = parse_host(balancer) if balancer else None
        password = _create.create(folder, name or folder.name, user or getpass.getuser(), host)
        return Created(cls(folder), password)

    @property
    def name(self) -> str:
        """The cluster's name."""
        return _create.name_of(self.folder)

    def inventory(self) -> Inventory:
        """Return the inventory as Ansible reads it."""
        return _inventory.read(self.folder)

    def nodes(self) -> list[str]:
        """Return the names of the nodes, in the inventory's order."""
        return self.inventory().members(_inventory.NODES)

    def add_node(self, node: Node, *, deploy: bool = True) -> list[Run]:
        """Check a host, write it into the inventory, and unless ``deploy`` is false deploy just it and let it in."""
        node.check()
        _inventory.check_new(self.folder, self.inventory(), node.name)
        with self.draft(_inventory.dump({_inventory.NODES: {"hosts": {node.name: node.variables() or None}}})) as file:
            checked = self.play(
                PLAYBOOKS / "check_host.yml", "check-host", extra={"new_node": node.name}, inventory=[file]
            )
        _inventory.add_node(self.folder, node)
        if not deploy:
            return [checked]
        try:
            deployed = self.play("site", "deploy", limit=f"{node.name},{_inventory.BALANCERS}")
            return [checked, deployed, self.play("resume", "resume", extra={"node": node.name})]
        except RunFailedError as error:
            give_up = f"give up with: llm cluster remove-node {node.name}"
            if self.nodes() == [node.name]:
                # The last node stays: remove-node would refuse.
                give_up = f"give up by taking it out of {_folder.NODES_FILE} by hand, with host_vars/{node.name}.yml"
            raise error.add(
                f"{node.name} is in the inventory, but not all is done. When what is said above is mended: "
                f"llm cluster deploy; or {give_up}"
            ) from None

    @contextlib.contextmanager
    def draft(self, text: str) -> Iterator[Path]:
        """Have an inventory that is not part of the real one; Ansible passes over files whose names start so."""
        with tempfile.NamedTemporaryFile("w", prefix=".new-", suffix=".yml", dir=self.folder, encoding="utf-8") as file:
            file.write(text)
            file.flush()
            yield Path(file.name)

    def remove_node(self, name: str, *, purge_models: bool = False, leave_host: bool = False) -> Removed:
        """Drain a node, take the cluster's parts off it, and take it out of the inventory and the balancers' table.

        :param purge_models: also remove the models from the host
        :param leave_host: don't touch the host, for one that is gone
        """
        inventory = self.inventory()
        _inventory.check_removable(inventory, name)
        try:
            self.play("drain", "drain", extra={"node": name, "drain_reason": "remove-node"})
        except RunFailedError as error:
            idle = without_requests(error.run)
            away = any(host.unreachable for host in error.run.hosts.values())
            if error.run.interrupted or away or not idle:
                raise
            if not idle.issuperset(inventory.members(_inventory.BALANCERS)):
                raise error.add(
                    "Not all balancers serve what the inventory says. Bring them to it, then run this again: "
                    f"llm cluster deploy --limit {_inventory.BALANCERS}"
                ) from None
        if not leave_host:
            purge = {"ollama_remove_models": purge_models, "llama_cpp_remove_models": purge_models}
            try:
                self.play("remove", "clean", limit=name, extra=purge)
            except RunFailedError as error:
                raise error.add(
                    f"{name} is drained, and still in the inventory. Run this again when what is said above is mended; "
                    f"if the host is gone: llm cluster remove-node {name} --leave-host; "
                    f"to keep it: llm cluster resume {name}"
                ) from None
        kept = _inventory.remove_node(self.folder, name)
        try:
            self.play("site", "balancers", limit=_inventory.BALANCERS, tags="balancer")
        except RunFailedError as error:
            also = f", its variables are kept as {kept}" if kept else ""
            raise error.add(
                f"{name} is out of the inventory{also}; balancers may still list it. When what is said above is "
                "mended: llm cluster deploy"
            ) from None
        return Removed(name, kept)

    def deploy(self, *, check: bool = False, diff: bool = False, limit: Sequence[str] = ()) -> Run:
        """Run ``site.yml``: bring every host to what the inventory says."""
        return self.play("site", "deploy", check=check, diff=diff, limit=self.limit(limit))

    def verify(self, *, check: bool = False, diff: bool = False) -> Run:
        """Run ``verify.yml``: ask every node and the endpoint a real question. Changes nothing."""
        return self.play("verify", "verify", check=check, diff=diff)

    def drain(self, name: str, *, reason: str | None = None, timeout: int | None = None) -> Run:
        """Take a node out of service on every balancer, and wait until it has finished what it works on."""
        self.known_node(name)
        extra: dict[str, Any] = {"node": name}
        if reason:
            extra["drain_reason"] = reason
        if timeout is not None:
            extra["drain_timeout"] = timeout
        return self.play("drain", "drain", extra=extra)

    def resume(self, name: str) -> Run:
        """Take a drained node back into service."""
        self.known_node(name)
        return self.play("resume", "resume", extra={"node": name})

    def status(self) -> Status:
        """Run ``status.yml``: each node's state, engine, slots and models; changes nothing."""
        run = self.play("status", "status", extra={"output": "json", **QUICK}, answer="output_file")
        return Status([node_status(name, entry) for name, entry in run.answer["nodes"].items()], run.answer, run)

    def stats(self) -> dict[str, Any]:
        """Run ``stats.yml``: load of the nodes, and the requests of the last minute."""
        return self.play("stats", "stats", extra={"output": "json", **QUICK}, answer="output_file").answer

    def show(self, what: str, *, passing: bool = False) -> Run:
        """Run ``status.yml`` or ``stats.yml`` for people: the run's messages are the table.

        :param passing: whether this is one look of many, which leaves no log
        """
        return self.play(what, what, extra=QUICK, passing=passing)

    def models(self) -> list[Model]:
        """Return the models that nodes serve or should serve, with the nodes of each version."""
        found: dict[str, Model] = {}
        for node in self.status().nodes:
            for model in node.models:
                entry = found.setdefault(model.name, Model(model.name, {}, []))
                (entry.versions.setdefault(model.digest, []) if model.digest else entry.missing).append(node.name)
        return sorted(found.values(), key=lambda model: model.name)

    def load(self, name: str, *, add: bool = False, source: str | None = None, digest: str | None = None) -> list[Run]:
        """Have a model in memory on every node it is placed on; with ``add`` or a source one that is new.

        :param source: a URL, a file on this machine, or another name in the engine's registry
        """
        nodes = self.nodes()
        if not nodes:
            raise UsageError("There is no node yet. Add one with: llm cluster add-node HOST")
        names = _models.known(_models.host_variables(self.folder), nodes)
        adds = add or source is not None or digest is not None
        if names is not None and name not in names and not adds:
            raise _models.unknown(name, names)
        if adds and name not in (names or []):
            return self.add_model(NewModel(name, source, digest), nodes)
        if source or digest:
            raise UsageError(
                f"{name} is in llm_models already. Its source and digest are changed there, by hand; "
                "then: llm cluster lock, llm cluster sync"
            )
        return [self.play("load", "load", extra={"model": name})]

    def add_model(self, model: NewModel, nodes: list[str]) -> list[Run]:
        """Check that the nodes can have a model, write it into nodes.yml, bring it to them and into service."""
        entry = model.entry(self.folder)
        lock = self.folder / "models.lock.yml"
        runs = []
        with self.draft(_models.edited(self.folder, entry)) as file:
            _models.check_effect(self.folder, nodes, entry, file)
            try:
                with put_back(lock):
                    if lock.is_file():
                        # First, so that all nodes get one version, whatever its tag does meanwhile.
                        runs.append(self.play("lock", "lock", inventory=[file]))
                    runs.append(self.play(PLAYBOOKS / "check_model.yml", "check-model", inventory=[file]))
                    _models.add_model(self.folder, entry)
            except RunFailedError as error:
                raise error.add(f"{model.name} was not added; nothing was changed.") from None
        try:
            runs.append(self.play("site", "deploy", tags=MODEL_TAGS))
            runs.append(self.play("load", "load", extra={"model": model.name}))
        except RunFailedError as error:
            raise error.add(
                f"{model.name} is in {_folder.NODES_FILE}, but not all is done. When what is said above is mended: "
                f"llm cluster deploy, then llm cluster load {model.name}"
            ) from None
        return runs

    def logs(self, host: str | None = None, *, lines: int = 50) -> list[LogLine]:
        """Return the last lines of the balancers' access logs, oldest first; with a node of its engine's journal."""
        found: list[LogLine] = []
        self.read_logs(found.extend, host, lines=lines)
        return in_order(found)[-lines:]

    def read_logs(
        self, take: Callable[[list[LogLine]], None], host: str | None = None, *, lines: int = 50, follow: bool = False
    ) -> None:
        """Give the last log lines to ``take``, as each host has them; to ``follow`` also what comes after them."""
        hosts, kind = self.log_of(host)
        reader = _logs.Reader(kind, take)

        def look(extra: dict[str, Any]) -> Run:
            quick = {"connect_timeout": QUICK["connect_timeout"]}
            return self.play(
                PLAYBOOKS / "logs.yml", "logs", extra={**extra, **quick}, passing=True, results=reader.result
            )

        if follow:
            _logs.follow(look, reader, hosts, lines)
        else:
            look(reader.variables(hosts, lines, follow=False))

    def log_of(self, host: str | None) -> tuple[str, str]:
        """Return the hosts whose log is meant, and which log."""
        inventory = self.inventory()
        nodes, balancers = (inventory.members(group) for group in (_inventory.NODES, _inventory.BALANCERS))
        if host is None:
            if not balancers:
                raise UsageError(f"The inventory has no balancer: put a host below {_inventory.BALANCERS}.")
            return _inventory.BALANCERS, _logs.ACCESS
        if host in nodes:
            return host, _logs.JOURNAL
        if host in balancers:
            return host, _logs.ACCESS
        raise UsageError(f"There is no node or balancer {host!r}. {near(host, [*nodes, *balancers], 'host')}")

    def lock(
        self, *, check: bool = False, diff: bool = False, update: Sequence[str] = (), source: str | None = None
    ) -> Run:
        """Run ``lock.yml``: write down which version of each model every node must serve.

        :param update: models whose sources are asked anew; ``all`` for all of them
        :param source: a node whose versions are taken
        """
        extra: dict[str, Any] = {"lock_update": list(update)} if update else {}
        if source:
            self.known_node(source)
            extra["lock_from"] = source
        return self.play("lock", "lock", check=check, diff=diff, extra=extra)

    def drift(self) -> Run:
        """Run ``drift.yml``: fails when a node's models differ from the lock; ``run.answer`` says where."""
        return self.play("drift", "drift", answer="result_file", judged=True)

    def sync(self, *, check: bool = False, diff: bool = False, take_over: bool = False) -> Run:
        """Run ``sync.yml``: bring node after node to the lock, while the others serve.

        :param take_over: also where another controller's sync says that it is at work
        """
        extra = {"sync_take_over": True} if take_over else None
        return self.play("sync", "sync", check=check, diff=diff, extra=extra, answer="result_file")

    def use(self) -> Used:
        """Set up this user's llm for the endpoint: its models and its key."""
        from . import _use

        if not self.inventory().members(_inventory.BALANCERS):
            raise UsageError(
                f"The inventory has no balancer: put a host below {_inventory.BALANCERS} in {_folder.NODES_FILE}."
            )
        found = self.play(PLAYBOOKS / "endpoint.yml", "use", answer="endpoint_file").answer
        models = _use.set_up(self.name, found)
        trusted = _use.trust(self.name, found["certificate"])
        return Used(found["url"], models, _use.key_name(self.name), bool(found["key"]), trusted)

    def stop_using(self) -> list[Path]:
        """Take out of this user's llm what ``use`` put in. Returns the files that changed."""
        from . import _use

        return _use.undo(self.name)

    def known_node(self, name: str) -> None:
        """Refuse a node, or a peer of one (``node1/gemma3:270m``), that is not in the inventory."""
        _inventory.check_known(self.inventory(), name.split("/", maxsplit=1)[0])

    def limit(self, hosts: Sequence[str]) -> str | None:
        """Return hosts or groups as Ansible's limit."""
        if not hosts:
            return None
        inventory = self.inventory()
        known = [*inventory.hosts, *inventory.groups]
        for host in hosts:
            if host not in known:
                raise UsageError(f"There is no host or group {host!r}. {near(host, known, 'host')}")
        return ",".join(hosts)

    def play(self, playbook: str | Path, name: str, **options: Any) -> Run:
        """Run a playbook on this cluster. See run_playbook."""
        _inventory.check_variables(self.folder)
        return run_playbook(self.folder, playbook, name=name, cluster=self.name, watcher=self.watcher, **options)


def without_requests(drained: Run) -> set[str]:
    """Return the balancers that could not drain a node, but give it no requests either."""
    return {failure.host for failure in drained.ignored if any(words in failure.reason for words in NO_REQUESTS)}


def in_order(lines: Sequence[LogLine]) -> list[LogLine]:
    """Return lines of several hosts by time; those of one host stay in their order."""
    return sorted(lines, key=lambda line: line.time)


@contextlib.contextmanager
def put_back(file: Path) -> Iterator[None]:
    """Have a file be as it was, if what is done meanwhile fails."""
    before = _inventory.text_of(file) if file.is_file() else None
    try:
        yield
    except BaseException:
        if before is not None:
            _inventory.replace(file, before)
        raise


def node_status(name: str, entry: dict[str, Any]) -> NodeStatus:
    """Return a node's entry in what status.yml says to programs."""
    engine = entry["engine"] or {}
    return NodeStatus(
        name=name,
        state=entry["state"],
        drained_by=list(entry["drained_by"]),
        engine=engine.get("kind"),
        engine_version=engine.get("version"),
        slots_busy=entry["slots"]["busy"],
        slots_total=entry["slots"]["total"],
        drift=entry["drift"],
        models=[ModelState(**{key: model[key] for key in MODEL_FIELDS}) for model in entry["models"]],
        notes=list(entry["notes"]),
    )


def parse_host(text: str, **settings: Any) -> Node:
    """Return HOST, HOST:PORT or [ADDRESS]:PORT as a node; ``name`` among the settings gives it another name."""
    host, port = text, None
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UsageError(f"{text!r} is no host: write [ADDRESS]:PORT.")
        written = rest[1:] if rest else None
    elif text.count(":") == 1:
        host, _colon, written = text.partition(":")
    else:
        written = None
    if written is not None:
        if not written.isascii() or not written.isdigit():
            raise UsageError(f"{written!r} in {text!r} is no port: it must be a number from 1 to 65535.")
        port = int(written)
    name = settings.pop("name", None) or host
    node = Node(name=name, host=host, port=port, **settings)
    node.check()
    return node


def parse_labels(pairs: Sequence[str]) -> dict[str, Any]:
    """Return ``key=value`` pairs as labels: numbers, true and false as such, commas make lists."""
    labels: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key.isidentifier() or not value:
            raise UsageError(
                f"{pair!r} is no label: write KEY=VALUE, such as rack=b. KEY is of letters, digits and '_'."
            )
        if key in labels:
            raise UsageError(f"Label {key} is given twice.")
        parts = [scalar(part) for part in value.split(",")]
        labels[key] = parts if len(parts) > 1 else parts[0]
    return labels


def scalar(text: str) -> Any:
    """Return a label's value as YAML would read it, as far as that is plain."""
    try:
        value = _inventory.load(text, "label")
    except ClusterError:
        return text
    return value if type(value) in (bool, int) else float(value) if isinstance(value, float) else text
