"""Fake W&B server with the GraphQL queries, the row stream and the uploads that wandb 0.31 uses.

It keeps everything in memory, including equal rows under different numbers. A second row with the same number is
recorded in `WandbServer.again`. Unlike the real server, it has no permissions, limits or retries.
"""

import gzip
import json
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from typing import Any

import yaml

ENTITY = "tester"
HISTORY, EVENTS, SUMMARY = "wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json"


@dataclass
class ServerRun:
    """Run on the server."""

    id: str
    project: str
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    raw_config: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)  # by stream, then by number
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None  # None: running, or the client vanished
    sweep: str = ""

    def stream(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in sorted(self.lines.get(name, {}).items())]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.stream(HISTORY)

    @property
    def summary(self) -> dict[str, Any]:
        return (self.stream(SUMMARY) or [{}])[-1]

    @property
    def config(self) -> dict[str, Any]:
        return {key: value["value"] for key, value in self.raw_config.items() if key != "_wandb"}


@dataclass
class Sweep:
    """W&B sweep on the server, a grid whose runs are given out one after the other, once each."""

    config: str
    project: str
    left: list[dict[str, Any]]  # parameters of the runs that have not been given out
    resumed: list[str] = field(default_factory=list)  # ids of runs to give out again first
    given: dict[str, dict[str, Any]] = field(default_factory=dict)  # parameters by id of the run
    states: dict[str, bool] = field(default_factory=dict)  # of the last heartbeat


class WandbServer:
    """Context manager of a server on a free port. `environment` directs the client to it.

    Attributes:
        runs: runs by ID.
        refuses: HTTP status with which every request is refused, 0 for none.
        refuses_rows: HTTP status with which requests to a run's stream are refused, 0 for none.
        refuses_storage: HTTP status with which files are refused, 0 for none.
        unknown: requests that the server does not know; tests expect none.
        again: (run, number) of rows received twice; tests expect none.
    """

    def __init__(self) -> None:
        self.runs: dict[str, ServerRun] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.sweeps: dict[str, Sweep] = {}
        self.alerts: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []
        self.unknown: list[str] = []
        self.again: list[tuple[str, int]] = []
        self.refuses = self.refuses_rows = self.refuses_storage = 0
        self.lock = threading.RLock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
                status, response = server.refuses, {"error": "refused"}
                if not status:
                    with server.lock:
                        status, response = server.route(path, body)
                content = json.dumps(response).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = answer  # noqa: N815

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda request, client_address: None  # clients disconnect when they exit
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> "WandbServer":
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "f" * 40, "WANDB_ENTITY": ENTITY}

    def wait_for_rows(self, count: int, seconds: float = 30) -> None:
        """Wait until the runs have the given number of rows in total."""
        end = time.monotonic() + seconds
        while sum(len(run.rows) for run in list(self.runs.values())) < count:
            assert time.monotonic() < end, "timed out waiting for rows"
            time.sleep(0.01)

    def route(self, path: str, body: bytes) -> tuple[int, Any]:
        """Return the status and the response to a request."""
        parts = path.strip("/").split("/")
        if path == "/graphql":
            query = json.loads(body)
            name = query.get("operationName") or query["query"].split("{")[0].split("(")[0].split()[-1]
            variables = query.get("variables") or {}
            answer = getattr(self, f"on_{name}", None)
            if answer is None:
                self.unknown.append(name)
                return 200, {"data": None, "errors": [{"message": f"the fake server does not know {name}"}]}
            return 200, {"data": answer(variables.get("input") or variables)}
        if parts[0] == "files" and parts[-1] == "file_stream":
            if self.refuses_rows:
                return self.refuses_rows, {"error": "refused"}
            run, sent = self.runs[parts[3]], json.loads(body)
            for name, chunk in (sent.get("files") or {}).items():
                lines, new = run.lines.setdefault(name, {}), dict(enumerate(chunk["content"], chunk["offset"]))
                if name == HISTORY:
                    self.again += [(run.id, number) for number in sorted(new.keys() & lines.keys())]
                lines.update(new)
            if sent.get("complete"):
                run.exit_code = sent["exitcode"]
            return 200, {"exitcode": None, "limits": {}}
        if parts[0] == "storage":
            if not self.refuses_storage and parts[1] == "run":
                self.runs[parts[2]].files["/".join(parts[3:])] = body
            elif not self.refuses_storage:
                self.artifacts[int(parts[2])].setdefault("files", {})["/".join(parts[3:])] = body
            return self.refuses_storage or 200, {}
        self.unknown.append(path)
        return 404, {"error": "not found"}

    def bucket(self, run: ServerRun) -> dict[str, Any]:
        project = {"id": "P", "name": run.project, "entity": {"id": "E", "name": ENTITY}}
        return {
            "id": f"run:{run.id}",
            "name": run.id,
            "displayName": run.name,
            "description": None,
            "config": json.dumps(run.raw_config),
            "sweepName": run.sweep or None,
            "historyLineCount": len(run.rows),
            "project": project,
        }

    def on_Viewer(self, given: dict[str, Any]) -> Any:  # noqa: N802
        viewer = {"id": "V", "entity": ENTITY, "username": ENTITY, "email": "t@example.org", "flags": "{}"}
        return {"viewer": {**viewer, "teams": {"edges": []}}}

    def on_GetDefaultEntity(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"viewer": {"id": "V", "entity": ENTITY}}

    def on_ServerFeaturesQuery(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"serverInfo": {"features": []}}

    def on_ServerInfo(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"serverInfo": {"cliVersionInfo": {"max_cli_version": "99.0.0"}, "latestLocalVersionInfo": None}}

    def on_UpsertBucket(self, given: dict[str, Any]) -> Any:  # noqa: N802
        id = given.get("name") or given["id"].removeprefix("run:")
        new = id not in self.runs
        run = self.runs.setdefault(id, ServerRun(id, given.get("project") or "uncategorized"))
        names = {"displayName": "name", "groupName": "group", "jobType": "job_type", "tags": "tags", "sweep": "sweep"}
        for field_name, attribute in names.items():
            if given.get(field_name) is not None:
                setattr(run, attribute, given[field_name])
        if given.get("config"):
            run.raw_config = json.loads(given["config"])
        return {"upsertBucket": {"bucket": self.bucket(run), "inserted": new}}

    def on_RunResumeStatus(self, given: dict[str, Any]) -> Any:  # noqa: N802
        bucket = None
        if run := self.runs.get(given["name"]):
            bucket = self.bucket(run) | {
                "summaryMetrics": json.dumps(run.summary),
                "tags": run.tags,
                "notes": None,
                "eventsLineCount": len(run.stream(EVENTS)),
                "logLineCount": 0,
                "historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]),
                "eventsTail": json.dumps([json.dumps(row) for row in run.stream(EVENTS)[-1:]]),
                "wandbConfig": json.dumps({"t": 1}) if "_wandb" in run.raw_config else None,
            }
        entity = {"id": "E", "name": ENTITY}
        return {"model": {"id": "P", "name": given.get("project"), "entity": entity, "bucket": bucket}}

    def on_Run(self, given: dict[str, Any]) -> Any:  # noqa: N802
        run = self.runs.get(given["name"])
        bucket = run and self.bucket(run) | {
            **dict.fromkeys(("commit", "heartbeatAt", "notes", "systemMetrics", "historyKeys")),
            "tags": run.tags,
            "state": "running" if run.exit_code is None else "finished",
            "group": run.group,
            "jobType": run.job_type,
            "readOnly": False,
            "createdAt": "2026-01-01T00:00:00",
            "summaryMetrics": json.dumps(run.summary),
            "user": {"name": ENTITY, "username": ENTITY},
        }
        return {"project": {"internalId": "1", "run": bucket}}

    def on_RunStoppedStatus(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"project": {"run": {"stopped": False}}}

    def on_CreateRunFiles(self, given: dict[str, Any]) -> Any:  # noqa: N802
        run = given["run"]
        files = [
            {"name": name, "uploadUrl": f"{self.url}/storage/run/{run}/{urllib.parse.quote(name)}"}
            for name in given["files"]
        ]
        return {"createRunFiles": {"runID": f"run:{run}", "uploadHeaders": [], "files": files}}

    def on_MarkRunFilesUploaded(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"markRunFilesUploaded": {"success": True}}

    def on_OrganizationCoreWeaveOrganizationID(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def on_ArtifactType(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"project": {"artifact": None}}

    def on_CreateArtifact(self, given: dict[str, Any]) -> Any:  # noqa: N802
        self.artifacts.append({"name": given["artifactCollectionName"], "type": given["artifactTypeName"]})
        artifact = {"id": str(len(self.artifacts) - 1), "state": "PENDING"}
        return {"createArtifact": {"artifact": {**artifact, "artifactSequence": {"latestArtifact": None}}}}

    def on_CreateArtifactManifest(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"createArtifactManifest": {"artifactManifest": self.manifest(given["artifactID"])}}

    def on_UpdateArtifactManifest(self, given: dict[str, Any]) -> Any:  # noqa: N802
        id = given["artifactManifestID"].removeprefix("m")
        return {"updateArtifactManifest": {"artifactManifest": self.manifest(id)}}

    def manifest(self, id: str) -> dict[str, Any]:
        url = f"{self.url}/storage/artifact/{id}/wandb_manifest.json"
        return {"id": f"m{id}", "file": {"id": "f", "uploadHeaders": [], "uploadUrl": url}}

    def on_CreateArtifactFiles(self, given: dict[str, Any]) -> Any:  # noqa: N802
        nodes = []
        for file in given["artifactFiles"]:
            id, name = file["artifactID"], file["name"]
            url = f"{self.url}/storage/artifact/{id}/{urllib.parse.quote(name)}"
            node = {"storagePath": name, "uploadHeaders": [], "uploadMultipartUrls": None, "uploadUrl": url}
            nodes.append({"node": {**node, "artifact": {"id": id}}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def on_CommitArtifact(self, given: dict[str, Any]) -> Any:  # noqa: N802
        self.artifacts[int(given["artifactID"])]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}

    def on_ArtifactByID(self, given: dict[str, Any]) -> Any:  # noqa: N802
        artifact = self.artifacts[int(given["id"])]
        project = {"id": "P", "internalId": "1", "name": "plainres", "entity": {"name": ENTITY}}
        collection = {"__typename": "ArtifactSequence", "id": "S", "name": artifact["name"], "project": project}
        unknown = dict.fromkeys(("description", "metadata", "historyStep", "commitHash", "updatedAt"))
        numbers = {"versionIndex": 0, "ttlDurationSeconds": -2, "ttlIsInherited": True, "size": 1, "fileCount": 1}
        known = {"id": given["id"], "state": "COMMITTED", "digest": "d", "createdAt": "2026-01-01T00:00:00"}
        kind = {"artifactType": {"name": artifact["type"]}, "tags": [], "aliases": []}
        return {"artifact": {**unknown, **numbers, **known, **kind, "artifactSequence": collection}}

    def on_NotifyScriptableRunAlert(self, given: dict[str, Any]) -> Any:  # noqa: N802
        self.alerts.append(given)
        return {"notifyScriptableRunAlert": {"success": True}}

    def on_ProjectInternalId(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"project": {"id": "P", "internalId": "1"}}

    def on_UpsertView2(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return self.on_upsertView(given)

    def on_upsertView(self, given: dict[str, Any]) -> Any:  # noqa: N802
        self.views.append(given)
        keys = ("type", "name", "displayName", "description", "spec")
        project = {"id": "P", "name": given.get("projectName"), "entityName": ENTITY}
        view = {key: given.get(key) for key in keys} | {"id": "W", "updatedAt": "2026-01-01T00:00:00"}
        return {"upsertView": {"view": {**view, "project": project}, "inserted": True}}

    def on_UpsertSweep(self, given: dict[str, Any]) -> Any:  # noqa: N802
        config = yaml.safe_load(given["config"])
        names = list(config["parameters"])
        grid = product(*(config["parameters"][name].get("values") for name in names))
        left = [{name: {"value": value} for name, value in zip(names, values, strict=True)} for values in grid]
        id = f"sweep{len(self.sweeps)}"
        self.sweeps[id] = Sweep(given["config"], given["projectName"], left)
        project = {"id": "P", "name": given["projectName"], "entity": {"id": "E", "name": ENTITY}}
        return {"upsertSweep": {"sweep": {"name": id, "project": project}, "configValidationWarnings": []}}

    def on_SweepWithRuns(self, given: dict[str, Any]) -> Any:  # noqa: N802
        id = given["sweep"]
        sweep = {"id": id, "name": id, "method": "grid", "state": "RUNNING", "config": self.sweeps[id].config}
        return {"project": {"sweep": {**sweep, "runs": {"edges": []}}}}

    def on_CreateAgent(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"createAgent": {"agent": {"id": f"agent:{given['sweep']}"}}}

    def on_Heartbeat(self, given: dict[str, Any]) -> Any:  # noqa: N802
        name = given["id"].removeprefix("agent:")
        sweep = self.sweeps[name]
        sweep.states = json.loads(given["runState"])
        commands: list[dict[str, Any]] = []
        if not sweep.states:  # the agent is idle
            if sweep.resumed:
                commands = [self.run_command(sweep, sweep.resumed.pop(0), "resume")]
            elif sweep.left:
                id = f"{name}run{len(sweep.given)}"
                sweep.given[id] = sweep.left.pop(0)
                self.runs[id] = ServerRun(id, sweep.project, sweep=name)
                commands = [self.run_command(sweep, id, "run")]
            else:
                commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": given["id"]}, "commands": json.dumps(commands)}}

    def run_command(self, sweep: Sweep, id: str, kind: str) -> dict[str, Any]:
        program = yaml.safe_load(sweep.config)["program"]
        return {"type": kind, "run_id": id, "program": program, "args": sweep.given[id]}

    def on_GetProjects(self, given: dict[str, Any]) -> Any:  # noqa: N802
        project = {"id": "P", "internalId": "1", "name": "plainres", "entityName": ENTITY}
        node = {**project, "createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
        page = {"endCursor": None, "hasNextPage": False}
        return {"models": {"edges": [{"cursor": "c", "node": node}], "pageInfo": page}}
