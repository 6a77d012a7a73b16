"""The script of a job, against scripts written by hand, and bash's own reading of it."""

import signal
import subprocess
from pathlib import Path

import pytest

from alignment.cli.compose import composing, resolve, single
from alignment.config.cluster import ClusterConfig, Scheduler
from alignment.config.errors import ConfigError
from alignment.slurm.jobs import plan_run
from alignment.slurm.script import Job, script

SMALL = """\
#!/bin/bash
# tiny_dpo; to go on by hand: sbatch /data/out/job.sbatch
#SBATCH --job-name=tiny_dpo
#SBATCH --chdir=/data
#SBATCH --output=/data/out/logs/%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=USR1@120

set -eo pipefail

# A signal to this shell must not end it before the processes have saved.
trap : TERM USR1
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT PYTHONUNBUFFERED=1

srun --kill-on-bad-exit=1 --export=ALL bash -c '
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  exec "$@"' alignment \\
  /venv/bin/alignment run /data/out/config.yaml
"""

LARGE = """\
#!/bin/bash
# 70b_ppo; to go on by hand: sbatch /data/out/job.sbatch
#SBATCH --job-name=ppo
#SBATCH --chdir=/data
#SBATCH --output=/data/out/logs/%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=900G
#SBATCH --time=2-00:00:00
#SBATCH --partition=large
#SBATCH --account=llm
#SBATCH --qos=high
#SBATCH --gres=nvme:1
#SBATCH --constraint=a100|h100
#SBATCH --no-requeue
#SBATCH --exclusive
#SBATCH "--comment=two words"

set -eo pipefail
module load cuda/12.8 nccl
export NCCL_DEBUG=INFO
export TEXT='a '"'"'b'"'"' $c'
ulimit -l unlimited
source setup.sh

# A signal to this shell must not end it before the processes have saved.
trap : TERM USR1
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT PYTHONUNBUFFERED=1

srun --kill-on-bad-exit=1 --export=ALL --cpus-per-task=12 --label bash -c '
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  exec "$@"' alignment \\
  python -m alignment run /data/out/config.yaml
"""


def job(**changed: object) -> Job:
    given = {"title": "tiny_dpo", "name": "tiny_dpo", "workdir": Path("/data"), "folder": Path("/data/out")}
    return Job(**{**given, "program": ("/venv/bin/alignment",), **changed})


def slurm(**settings: object) -> ClusterConfig:
    return ClusterConfig(scheduler=Scheduler.slurm, **settings)


def lines(text: str, start: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith(start)]


def last(text: str) -> str:
    return text.splitlines()[-1].strip()


def test_the_smallest_job() -> None:
    assert script(job(), slurm()) == SMALL


def test_a_job_that_says_everything() -> None:
    cluster = slurm(
        nodes=8,
        gpus_per_node=8,
        cpus_per_task=12,
        mem="900G",
        partition="large",
        account="llm",
        qos="high",
        time="2-00:00:00",
        gres="nvme:1",
        constraint="a100|h100",
        command="python -m alignment",
        modules=["cuda/12.8", "nccl"],
        environment={"NCCL_DEBUG": "INFO", "TEXT": "a 'b' $c"},
        setup=["ulimit -l unlimited", "source setup.sh"],
        extra=["--exclusive", "--comment=two words"],
        signal_before_end=0,
        requeue=False,
        job_name="ppo",
    )
    assert script(job(title="70b_ppo"), cluster) == LARGE


def test_tasks_are_one_for_each_gpu_unless_said() -> None:
    for settings, tasks in (({"gpus_per_node": 4}, 4), ({"gpus_per_node": 4, "tasks_per_node": 1}, 1), ({}, 1)):
        text = script(job(), slurm(**settings))
        assert lines(text, "#SBATCH --ntasks") == [f"#SBATCH --ntasks-per-node={tasks}"]
        assert (" --label " in text) == (tasks > 1)
    assert " --label " in script(job(), slurm(nodes=2))


def test_a_server_has_gpus_of_its_own_beside_the_processes() -> None:
    text = script(job(gpus_apart=2), slurm(gpus_per_node=6))
    assert lines(text, "#SBATCH --gpus") == ["#SBATCH --gpus-per-node=8"]
    assert lines(text, "#SBATCH --ntasks") == ["#SBATCH --ntasks-per-node=6"]
    assert lines(script(job(gpus_apart=1), slurm()), "#SBATCH --gpus") == []  # one on a CPU


def test_a_job_asks_for_the_gpus_of_training_and_of_the_server_that_the_run_starts() -> None:
    """But for a server that sleeps, which has those of the processes."""
    words = ["cluster=slurm", "cluster.gpus_per_node=6", "distributed=zero3", "batch.size=12", "launch.vllm=2"]
    found = []
    for sleep in ("false", "true"):
        with composing([]):
            config = resolve(single("tiny_ppo", [*words, "generation.engine=vllm", f"generation.vllm.sleep={sleep}"]))
        (planned,) = plan_run("tiny_ppo", config)
        assert planned.runs[0].launch.vllm == 2
        found += lines(planned.script, "#SBATCH --gpus") + lines(planned.script, "#SBATCH --ntasks")
    six = "#SBATCH --ntasks-per-node=6"
    assert found == ["#SBATCH --gpus-per-node=8", six, "#SBATCH --gpus-per-node=6", six]


def test_an_array_finds_each_config_by_its_number() -> None:
    text = script(job(num_array=3), slurm())
    assert lines(text, "#SBATCH --array") == ["#SBATCH --array=0-2"]
    assert lines(text, "#SBATCH --output") == ["#SBATCH --output=/data/out/%a/logs/%A_%a.log"]
    assert last(text) == '/venv/bin/alignment run /data/out/"$SLURM_ARRAY_TASK_ID"/config.yaml'


def test_a_container_sees_the_folders_and_brings_its_own_command() -> None:
    text = script(job(), slurm(container="registry#image:1", container_mounts=["/scratch:/scratch:ro"]))
    mounts = "/data:/data,/data/out:/data/out,/scratch:/scratch:ro"
    options = f"'--container-image=registry#image:1' --container-mounts={mounts} --container-workdir=/data"
    assert lines(text, "srun") == [f"srun --kill-on-bad-exit=1 --export=ALL {options} bash -c '"]
    assert last(text) == "alignment run /data/out/config.yaml"


def test_a_prefix_starts_the_command_it_finds_there() -> None:
    text = script(job(), slurm(prefix="apptainer exec --nv image.sif"))
    assert last(text) == "apptainer exec --nv image.sif alignment run /data/out/config.yaml"
    text = script(job(), slurm(prefix="numactl -l", command="bin/align"))
    assert last(text) == "numactl -l bin/align run /data/out/config.yaml"


def test_folders_with_odd_names_stay_one_word() -> None:
    folder = Path("/data/it's 100% # odd")
    text = script(job(folder=folder, workdir=folder), slurm())
    assert lines(text, '#SBATCH "') == [
        '#SBATCH "--chdir=/data/it\'s 100% # odd"',
        '#SBATCH "--output=/data/it\'s 100%% # odd/logs/%j.log"',
    ]
    asked = text.replace('exec "$@"', 'printf "%s|" "$@"').replace("srun --kill-on-bad-exit=1 --export=ALL", "")
    ran = subprocess.run(["bash"], input=asked.replace("$(scontrol", "$(echo"), capture_output=True, text=True)
    assert ran.stdout == f"/venv/bin/alignment|run|{folder}/config.yaml|"


@pytest.mark.parametrize("name", ['say "no"', "back\\slash", "two\nlines"])
def test_a_folder_that_no_sbatch_line_can_hold_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="a folder must have a name without double quote, backslash and line break"):
        script(job(folder=Path("/data") / name), slurm())


@pytest.mark.parametrize("cluster", [slurm(), slurm(nodes=2, container="i", setup=["if true; then", "  echo a", "fi"])])
def test_bash_can_read_it(cluster: ClusterConfig) -> None:
    ran = subprocess.run(["bash", "-n"], input=script(job(num_array=2), cluster), capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def with_fake_slurm(folder: Path, srun: str) -> dict[str, str]:
    """The environment of a job whose srun does this."""
    for name, body in (("srun", srun), ("scontrol", "echo one; echo two")):
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}


def test_the_exit_code_of_srun_is_the_scripts(tmp_path: Path) -> None:
    environment = with_fake_slurm(tmp_path, "exit 75")
    assert subprocess.run(["bash"], input=SMALL, text=True, env=environment).returncode == 75
    failing = SMALL.replace("pipefail\n", "pipefail\nfalse\n", 1)
    assert subprocess.run(["bash"], input=failing, text=True, env=environment).returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_shell_leaves_the_processes_their_time(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "job.sbatch").write_text(SMALL)
    environment = with_fake_slurm(tmp_path, "echo started; sleep 0.5; echo saved")
    words = ["bash", str(tmp_path / "job.sbatch")]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None and shell.stdout.readline() == "started\n"
        shell.send_signal(number)
        assert shell.stdout.read() == "saved\n"
    assert shell.returncode == 0
