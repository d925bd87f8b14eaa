"""`sfumato submit` and `sfumato jobs` without SLURM: stand-ins of its programs on the PATH."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sfumato.base import environment
from sfumato.base.environment import set_command
from sfumato.base.errors import ConfigError, InputError
from sfumato.base.files import write_json, write_text
from sfumato.config.schema import load_experiment
from sfumato.launch.jobs import SWEEP, jobs_below, submit_job
from sfumato.launch.script import Resources, job_script, time_seconds
from sfumato.launch.slurm import queued_jobs, submit
from sfumato.launch.sweep import check_sweep, combinations, sweep_results, write_results
from sfumato.training.folder import check_is_run, claim_folder

SMALL_RUN = Path(__file__).parent / "data" / "small-run"
REFUSES = """echo 'sbatch: error: invalid partition specified: nope' >&2
echo 'sbatch: error: Batch job submission failed: Invalid partition name specified' >&2
exit 1"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make a program of SLURM run lines of shell; others are not there."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("bash", "ls", "tail", "grep", "cut", "date", "sleep", "cat", "touch"):
        (folder / name).symlink_to(shutil.which(name) or name)
    monkeypatch.setenv("PATH", str(folder))

    def write(name: str, script: str) -> None:
        file = folder / name
        file.write_text(f"#!{folder}/bash\n{script}\n")
        file.chmod(0o755)

    return write


# The script ---------------------------------------------------------------------------------------


def test_defaults_of_the_script_are_those_of_the_paper() -> None:
    lines = job_script(Path("runs/a"), ["digits"], Resources()).splitlines()
    here = Path.cwd()
    assert [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")] == [
        "--job-name=sfumato-a",
        f"--chdir={here}",
        f"--output={here}/runs/a/slurm/%j.out",
        "--open-mode=append",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--gpus-per-node=1",
        "--cpus-per-task=4",
        "--mem=32G",
        "--requeue",
        "--signal=B:USR1@120",
    ]
    assert f"run={here}/runs/a" in lines


def test_each_gpu_has_a_process_with_its_own_cores_and_memory() -> None:
    resources = Resources(nodes=2, gpus_per_node=4, time="1-12", options=["--qos=long"])
    lines = job_script(Path("a b%"), ["digits"], resources).splitlines()
    assert "#SBATCH --ntasks-per-node=4" in lines
    assert "#SBATCH --mem=128G" in lines
    assert "#SBATCH --time=1-12" in lines
    assert f'#SBATCH --output="{Path.cwd()}/a b%%/slurm/%j.out"' in lines
    assert lines.index("#SBATCH --qos=long") < lines.index("")
    assert "--gpus-per-node" not in job_script(Path("a"), ["digits"], Resources(gpus_per_node=0))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("10:30", 630),
        ("4:00:00", 14_400),
        ("1-12", 129_600),
        ("2-0:30", 174_600),
        ("1-1:1:1", 90_061),
    ],
)
def test_time_limits_of_slurm(text: str, seconds: int) -> None:
    assert time_seconds(text) == seconds


@pytest.mark.parametrize("text", ["4h", "", "0", "1:2:3:4", "-5", "1-", "90 "])
def test_another_time_limit_is_refused(refused, text: str) -> None:
    with refused(InputError):
        Resources(time=text)


def test_a_limit_that_leaves_no_time_to_train_is_refused(refused) -> None:
    assert Resources(time="4").time == "4"
    with refused(InputError):
        Resources(time="3:59")


def test_the_script_in_the_documentation_is_the_one_that_is_made(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sys, "executable", f"{Path.cwd()}/.venv/bin/python")
    monkeypatch.setattr(environment, "_command", "")
    resources = Resources(nodes=2, time="12:00:00")
    set_command(
        [
            "sfumato",
            "submit",
            "train",
            "cifar10",
            "--nodes",
            "2",
            "--time",
            "12:00:00",
            "--out",
            "runs/cifar10",
        ]
    )
    made = job_script(Path("runs/cifar10"), ["cifar10"], resources)
    text = (Path(__file__).parents[1] / "docs" / "slurm.md").read_text("utf-8")
    shown = text.partition("```bash\n")[2].partition("\n```")[0]
    assert shown == made.replace(str(Path.cwd()), "/home/me").rstrip("\n")


class Script:
    """A job's script in bash, with stand-ins for what it calls."""

    def __init__(self, folder: Path, programs) -> None:
        self.folder = folder
        (folder / "slurm").mkdir(parents=True)
        self.file = folder / "slurm" / "job.sh"
        self.file.write_text(job_script(folder, ["digits", "--set", "about=a 'b'"], Resources()))
        self.calls = folder / "calls"
        programs(
            "scontrol", f'echo "$@" >> "{self.calls}"; echo NodeName=n1 NodeAddr=127.0.0.1 A=1'
        )

    def start(self, **variables: str) -> "subprocess.Popen[str]":
        environ = {
            **os.environ,
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n1",
            "SLURMD_NODENAME": "n1",
            "SLURM_NTASKS": "1",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            **variables,
        }
        environ.pop("SLURM_RESTART_COUNT", None)  # as at the first start
        return subprocess.Popen(
            [shutil.which("bash") or "bash", self.file],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def requeued(self) -> bool:
        return "requeue 7" in self.calls.read_text("utf-8").splitlines()

    def save(self, images: int) -> None:
        (self.folder / "checkpoints" / f"images-{images:09d}").mkdir(parents=True)


@pytest.fixture
def script(tmp_path: Path, programs) -> Script:
    return Script(tmp_path / "a run", programs)


def test_the_run_gets_its_arguments_its_rank_and_where_ranks_meet(script, programs) -> None:
    names = "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT"
    python = script.folder / "python"
    text = script.file.read_text("utf-8").replace(sys.executable, f"'{python}'")
    script.file.write_text(text)
    python.write_text(f'#!{shutil.which("bash")}\nprintf "%s|" "{names}" "$@"\n')
    python.chmod(0o755)
    programs("srun", 'shift; "$@"')
    out, _ = script.start().communicate(timeout=30)
    expected = ["0 0 1 1 127.0.0.1 10007", "-m", "sfumato", "train", "digits", "--set"]
    expected += ["about=a 'b'", "--out", str(script.folder), ""]
    assert out.splitlines()[-1].split("|") == expected
    assert out.startswith("Start 1 of job 7 on n1")


@pytest.mark.parametrize(
    ("state", "exits", "again"),
    [
        ("RUNNING", 0, False),
        ("RUNNING", 2, False),  # a setting that is refused
        ("RUNNING", 4, True),  # a rank was lost
        ("RUNNING", 137, True),  # killed
        ("COMPLETING", 137, False),  # SLURM ends it, or requeues it by itself
        ("", 143, False),
    ],
)
def test_what_is_requeued(script, programs, state: str, exits: int, again: bool) -> None:
    programs("srun", f"exit {exits}")
    programs("squeue", f'echo "{state}"')
    process = script.start()
    out, _ = process.communicate(timeout=30)
    assert script.requeued == again, out
    assert process.returncode == (0 if again else exits)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_that_comes_twice_reaches_the_run_which_saves(script, programs, number) -> None:
    ready, saved = script.folder / "ready", script.folder / "saved"
    programs(
        "srun",
        f"""trap 'echo signal >> "{saved}"; sleep 1; exit 130' USR1
touch "{ready}"
while :; do sleep 0.1; done""",
    )
    programs("squeue", "echo RUNNING")
    process = script.start()
    wait_for(ready.exists)
    process.send_signal(number)
    wait_for(saved.exists)
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0, out
    assert script.requeued
    assert set(saved.read_text("utf-8").splitlines()) == {"signal"}


def test_three_starts_that_saved_nothing_are_the_last(script, programs) -> None:
    programs("squeue", "echo RUNNING")
    programs("srun", "exit 4")
    for images in (0, 32):
        if images:
            script.save(images)
        for start in range(3):
            script.calls.unlink(missing_ok=True)
            out, _ = script.start().communicate(timeout=30)
            assert script.requeued == (start < 2), out
    assert "have saved nothing" in out


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Submitting ---------------------------------------------------------------------------------------


def test_the_script_is_kept_in_the_run_folder_which_training_takes(programs, sfumato) -> None:
    programs("sbatch", "cat > given.sh; echo '12;cluster'")
    result = sfumato("submit", "train", "digits", "--out", "runs/a", "--images", "64")
    assert result.code == 0, result.err
    assert result.out.startswith("Submitted job 12: runs/a\n")
    script = Path("runs/a/slurm/job.sh").read_text("utf-8")
    assert script == Path("given.sh").read_text("utf-8")
    assert "sfumato train digits --set training.images=64 --out" in script
    assert json.loads(Path("runs/a/slurm/job.json").read_text("utf-8"))["job"] == "12"
    check_is_run(Path("runs/a"))


def test_print_writes_nothing(programs, sfumato) -> None:
    result = sfumato("submit", "train", "digits", "--out", "runs/a", "--print")
    assert result.code == 0, result.err
    assert result.out.startswith("#!/bin/bash\n")
    assert not Path("runs").exists()


def test_without_sbatch(refused, programs) -> None:
    with refused(InputError):
        submit_job(Path("runs/a"), "script")
    assert not Path("runs").exists()


def test_what_sbatch_says_is_shown(refused, programs) -> None:
    programs("sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1")
    with refused(InputError):
        submit("script")


def test_a_partition_that_does_not_exist(refused, programs) -> None:
    programs("sbatch", REFUSES)
    programs("sinfo", "echo low; echo high; echo low")
    with refused(InputError):
        submit("script")


def test_a_run_that_is_in_the_queue_is_not_submitted_again(refused, programs) -> None:
    programs("sbatch", "echo 12")
    submit_job(Path("runs/a"), "script")
    programs("squeue", line("12", "PENDING", "Priority", "", "0:00", "1:00:00", "0"))
    with refused(InputError):
        submit_job(Path("runs/a"), "script")
    programs("squeue", "")
    assert submit_job(Path("runs/a"), "script") == "12"


@pytest.mark.parametrize(
    "given",
    [
        ["digit"],
        ["digits", "--set", "training.batchsize=3"],
        ["digits", "--time", "4h"],
        ["digits", "--nodes", "3"],
    ],
)
def test_mistyped_words_are_answered_before_torch_is_imported(programs, given) -> None:
    programs("sbatch", "touch submitted")
    arguments = ["sfumato", "submit", "train", *given]
    code = (
        f"import sys\nsys.argv = {arguments}\nfrom sfumato.cli import main\n"
        "try:\n    main()\nexcept SystemExit as leaving:\n"
        "    assert 'torch' not in sys.modules\n    raise\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert not Path("submitted").exists()
    assert not Path("runs").exists()


def test_a_folder_of_another_experiment_is_refused(programs, sfumato) -> None:
    programs("sbatch", "touch submitted")
    shutil.copytree(SMALL_RUN, "runs/a")
    result = sfumato("submit", "train", "digits", "--seed", "5", "--out", "runs/a")
    assert result.code == 2
    assert "runs/a holds another experiment: " in result.err
    assert not Path("submitted").exists()
    assert not Path("runs/a/slurm").exists()


def test_several_processes_of_a_method_of_one_are_refused(programs, sfumato) -> None:
    result = sfumato("submit", "train", "classifier", "digits", "--nodes", "2", "--print")
    assert result.code == 2
    assert "is trained in one process, not in 2" in result.err


# Sweeps -------------------------------------------------------------------------------------------


def test_every_combination_has_a_name() -> None:
    over = ["training.optimizer.lr=1e-3,1e-4", "model.block_out_channels=[8,16],[16,32]"]
    assert combinations(over) == {
        f"lr={lr},block_out_channels=-{channels}": [
            f"training.optimizer.lr={lr}",
            f"model.block_out_channels=[{channels}]",
        ]
        for lr in ("1e-3", "1e-4")
        for channels in ("8,16", "16,32")
    }
    assert list(combinations(["about=a b,a/b"])) == ["about=a-b", "about=a-b-1"]
    nested = combinations(["model.levels=[[1,2],[3]],[]", "about=it's, one's"])
    assert list(nested.values()) == [
        [f"model.levels={levels}", f"about={about}"]
        for levels in ("[[1,2],[3]]", "[]")
        for about in ("it's", "one's")
    ]
    assert combinations(["data.caption=['a, b'],c"]) == {
        "caption=-a,-b": ["data.caption=['a, b']"],
        "caption=c": ["data.caption=c"],
    }


@pytest.mark.parametrize(
    "over",
    [
        ["seed"],
        ["seed="],
        ["seed=,"],
        ["=1"],
        ["seed=1,2", "seed=3"],
        ["a=[1,2"],
        ["a='b, c"],
        ["a=1],2"],
    ],
)
def test_a_setting_without_values_or_twice_is_refused(refused, over: list[str]) -> None:
    with refused(ConfigError):
        combinations(over)


def test_a_sweep_is_an_array_whose_tasks_are_its_runs(programs, sfumato) -> None:
    programs("sbatch", "cat > given.sh; echo 5")
    given = [
        "submit",
        "sweep",
        "digits",
        "--over",
        "seed=0,1",
        "--over",
        "training.optimizer.lr=1e-3",
    ]
    result = sfumato(*given, "--out", "runs/s", "--parallel", "1")
    assert result.code == 0, result.err
    assert "Submitted job 5, 2 runs: runs/s" in result.out
    script = Path("given.sh").read_text("utf-8")
    here = Path.cwd() / "runs" / "s"
    assert "#SBATCH --array=0-1%1" in script
    assert f"#SBATCH --output={here}/slurm/%A_%a.out" in script
    assert (
        f"1) run={here}/seed=1,lr=1e-3 "
        "settings=(--set seed=1 --set training.optimizer.lr=1e-3) ;;" in script
    )
    assert "requeue" in script
    assert list(json.loads(Path("runs/s/sweep.json").read_text())["runs"]) == [
        "seed=0,lr=1e-3",
        "seed=1,lr=1e-3",
    ]
    programs("squeue", "")
    assert sfumato(*given, "--out", "runs/s").code == 0  # goes on
    other = sfumato("submit", "sweep", "digits", "--over", "seed=0,2", "--out", "runs/s")
    assert other.code == 2
    assert "runs/s holds another sweep" in other.err


def test_a_sweep_that_sbatch_refuses_leaves_no_folder(programs, sfumato) -> None:
    """It is there when the job is submitted: its first task may begin at once."""
    programs("sbatch", "test -f runs/s/sweep.json && touch known; exit 1")
    given = ["submit", "sweep", "digits", "--over", "seed=0,1", "--out", "runs/s"]
    assert sfumato(*given).code == 2
    assert Path("known").exists()
    assert not Path("runs").exists()


def test_a_sweep_without_values_or_with_a_mistyped_one(programs, sfumato) -> None:
    assert "A sweep needs values" in sfumato("submit", "sweep", "digits").err
    result = sfumato("submit", "sweep", "digits", "--over", "training.learning_rate=1,2")
    assert "Did you mean 'training.optimizer.lr'?" in result.err


def test_a_sweep_has_no_run_twice(sfumato) -> None:
    result = sfumato(
        *("submit", "sweep", "digits", "--print"), "--over", "training.optimizer.lr=0.001,1e-3"
    )
    assert result.code == 2
    assert "have the same settings" in result.err


def test_a_folder_with_something_else_is_no_place_for_a_sweep(refused) -> None:
    write_text(Path("s/notes.txt"), "mine")
    with refused(ConfigError):
        check_sweep(Path("s"), {})
    with refused(InputError):
        sweep_results(Path("s"))


def test_results_of_a_sweep_in_one_table(sfumato) -> None:
    runs = {"seed=0": ["seed=0"], "seed=1": ["seed=1"]}
    write_json(Path("s") / SWEEP, {"runs": runs})
    shutil.copytree(SMALL_RUN, "s/seed=0")
    found = write_results(Path("s"))
    last = json.loads(Path("s/seed=0/metrics.jsonl").read_text().splitlines()[-1])
    assert [(one.state, one.images_seen, one.loss) for one in found] == [
        ("finished", 64_000, last["loss"]),
        ("waiting", 0, None),
    ]
    assert Path("s/results.md").read_text("utf-8").splitlines() == [
        "| seed | state | images | loss | accuracy (%) |",
        "| --- | --- | ---: | ---: | ---: |",
        f"| 0 | finished | 64,000 | {last['loss']:.4f} | - |",
        "| 1 | waiting | 0 | - | - |",
    ]
    assert json.loads(Path("s/results.json").read_text())[0]["images_seen"] == 64_000
    result = sfumato("submit", "results", "s")
    assert result.out.splitlines()[1].split() == [
        "0",
        "finished",
        "64,000",
        f"{last['loss']:.4f}",
        "-",
    ]


# What runs where ----------------------------------------------------------------------------------


def line(*fields: str) -> str:
    """A line of shell that prints what squeue would."""
    return "printf '" + "".join(f"{field}\\x1f" for field in fields) + "\\n'"


def test_jobs_are_listed_with_where_they_run(programs, sfumato, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    programs("sbatch", "echo 12")
    for name in ("runs/a", "runs/b", "runs/deep/s"):
        programs("sbatch", f"echo {len(name) * 2}")  # 12, 12, 22
        submit_job(Path(name), "script")
    write_json(Path("runs/b/slurm/job.json"), {"job": "13"})
    write_json(Path("runs/deep/s") / SWEEP, {"runs": {"seed=0": ["seed=0"], "seed=1": ["seed=1"]}})
    claim_folder(load_experiment("digits"), Path("runs/a"))
    programs(
        "squeue",
        "\n".join(
            [
                line("12", "RUNNING", "None", "n[1-2]", "1:02", "58:58", "3"),
                line("22_1", "PENDING", "Resources", "", "0:00", "1:00:00", "0"),
                line("99", "RUNNING", "None", "n3", "1:02", "58:58", "0"),
            ]
        ),
    )
    total = f"{load_experiment('digits').training.images:,}"
    result = sfumato("jobs")
    assert [row.split() for row in result.out.splitlines()[1:]] == [
        ["22_1", "runs/deep/s/seed=1", "pending", "(Resources)", "-", "0:00", "1:00:00", "0", "-"],
        ["22_0", "runs/deep/s/seed=0", "not", "begun", "-", "-", "-", "-", "-"],
        ["13", "runs/b", "not", "begun", "-", "-", "-", "-", "-"],
        ["12", "runs/a", "running", "n[1-2]", "1:02", "58:58", "3", "0", "of", total],
    ]
    found = json.loads(sfumato("jobs", "--json").out)
    assert found[-1]["queued"]["restarts"] == 3
    assert [one.job for one in jobs_below(Path("runs/deep"))] == ["22_1", "22_0"]
    assert sfumato("jobs", "runs/a/slurm").out == "No jobs below runs/a/slurm.\n"


def test_a_folder_that_does_not_exist_has_no_jobs(refused, programs) -> None:
    with refused(InputError):
        jobs_below(Path("absent"))


def test_a_queue_that_does_not_answer(refused, programs) -> None:
    programs(
        "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    )
    with refused(InputError):
        queued_jobs()


@pytest.mark.parametrize("program", ["sbatch", "squeue"])
def test_programs_of_slurm_that_know_of_no_cluster(refused, programs, program: str) -> None:
    said = "error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host"
    fatal = "fatal: Could not establish a configuration source"
    programs(program, f"echo '{program}: {said}' >&2; echo '{program}: {fatal}' >&2; exit 1")
    with refused(InputError):
        submit("#!/bin/bash\n") if program == "sbatch" else queued_jobs()


@pytest.mark.parametrize("option", ["qos=long", "--nodes=4", "-t 10"])
def test_options_of_sbatch_that_are_none_or_set_already(refused, option: str) -> None:
    with refused(InputError):
        Resources(options=[option])
    assert Resources(options=["--qos=long", "-p gpu"]).options == ["--qos=long", "-p gpu"]
