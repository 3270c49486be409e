"""Files and flags made to hang, overflow or deceive: one line, exit code 2, at once and within 1 GiB."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from planner.plan_file import SCHEMA, schema_text

CPU_S = 5  # beyond imports: all take less than a second of a quiet core, of a shared one up to three times as much
BYTES = 2**30
Ask = Callable[..., str]  # folder, words of the command

CLUSTERS = {
    "flow_nest": ("base: dgx-h100\nnodes: " + "[" * 20_000, "nests deeper than 32 levels"),
    "dash_nest": ("- " * 20_000, "nests deeper than 32 levels"),
    "block_nest": ("\n".join(" " * i + "a:" for i in range(1400)), "nests deeper than 32 levels"),
    "key_nest": ("nodes: " + "{" * 20_000, "a key must be a text"),
    "long_number": (f"base: dgx-h100\nnodes: [{{count: {'9' * 5001}}}]", "a number of 5,001 digits is not read"),
    "large_number": (f"base: dgx-h100\nnodes: [{{count: {10**25}}}]", "whole numbers within 2^63"),
    "large_float": ("base: dgx-h100\nnodes: [{count: 1.0e+25}]", "whole numbers within 2^63"),
    "twice": ("base: dgx-h100\nnodes: [{count: 4}]\nnodes: [{count: 2}]", "the key nodes is given twice"),
    "twice_inside": ("base: dgx-h100\nfabric: {nodes_per_leaf: 4, nodes_per_leaf: 8}", "nodes_per_leaf is given twice"),
    "bomb": ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", "aliases"),
    "tag": ("nodes: !!python/object/apply:os.system [ls]", "the tag tag:yaml.org,2002:python/object/apply:os.system"),
    "runs": ("base: dgx-h100\nnodes:\n" + "- {count: 1}\n" * 60_000, "lists 60,000 runs of nodes; at most 10,000"),
    "many_overrides": (
        "base: dgx-h100\nnodes: [{count: 16384}]\noverrides:\n" + "- {slots: [0-16383], gpus: 7}\n" * 3_000,
        "overrides name 49,152,000 slots in all",
    ),
    "million_nodes": ("base: dgx-h100\nnodes: [{count: 1000000}]", "from 1 to 1048576 can be planned"),
    "nul": ('base: dgx-h100\nname: "a\\0b"\nnodes: [{count: 1}]', r"holds '\x00', which hides or reorders text"),
    "right_to_left": ("base: dgx-h100\nname: a\u202eb\nnodes: [{count: 1}]", r"holds '\u202e', which hides"),
    "full_width": ("base: dgx-h100\nnodes: [{count: ４}]", "'４' is not a whole number"),
    "full_width_slot": (
        "base: dgx-h100\nnodes: [{count: 9}]\noverrides: [{slots: [７], gpus: 1}]",
        "'７' is neither a",
    ),
    "nan": ("base: dgx-h100\nfabric: {nodes_per_leaf: 4, oversubscription: .nan}", ".nan is not a finite number"),
    "infinite": ("base: dgx-h100\nfabric: {nodes_per_leaf: 4, oversubscription: 1e999}", "inf must be finite"),
    "binary": ("\x01\x02\x03", "is not valid YAML"),
    "empty": ("", "c.yaml is none of: a cluster file (YAML), nvidia-smi topo -m"),
    "json_nest": ("[" * 20_000, "is not valid JSON: it nests too deeply"),
    "huge_hops": ("base: dgx-h100\nfabric: {nodes_per_leaf: 4, spine_hops: 9000000000}", "spine_hops from 0 to 64"),
    "tiny_share": (
        "base: dgx-h100\nnodes: [{count: 1, nic_shares: [1e-300,1,1,1,1,1,1,1]}]",
        "a share from 0.001 to 1 for each of 8 NICs",
    ),
    "named_hosts": (f"base: dgx-h100\nhosts: '{'a[1-9]' * 7}'", "names more than 131,072 hosts"),
    "many_layers": (
        json.dumps({"instances": [{"id": "n", "network_layers": [f"l{i}" for i in range(200_000)]}]}),
        "200,000 network layers; at most 16",
    ),
    "many_levels": (
        "SwitchName=s0 Nodes=n1\n" + "".join(f"SwitchName=s{i + 1} Switches=s{i}\n" for i in range(20_000)),
        "20,001 levels of switches; at most 16",
    ),
    "many_hosts": (
        "".join(f"SwitchName=s{i} Nodes=n[{i * 1000}-{i * 1000 + 999}]\n" for i in range(1000)),
        "names more than 131,072 hosts",
    ),
    "many_lines": ("SwitchName=s Nodes=n\n" * 1_000_000, "has 1,000,000 lines; at most 65,536"),
    "key_twice_among_many": (
        '{"instances": [], ' + "".join(f'"k{i}": 1, ' for i in range(200_000)) + '"k199999": 2}',
        "the key 'k199999' is given twice",
    ),
    "many_lanes": (
        f'Switch\t65 "S-0a"\t# "L" e\n[1]\t"H-0b"[1](0b) \t# "h1 mlx5_0" lid 1 {"9" * 400}xNDR\n',
        "names no host",
    ),
    "reordered_printed": (
        "\tGPU0\tGPU1\tCPU Affinity\nGPU0\t X \tNV12\t\u202e0\nGPU1\tNV12\t X \t0\n",
        r"the character '\u202e' at",
    ),
    "xml_bomb": ('<!DOCTYPE a [<!ENTITY b "x">]><system>&b;</system>', "document types and entities are not read"),
    "xml_nest": ("<system>" * 20_000, "nests deeper than 32 levels"),
    "xml_open": ("<system" * 200_000, "is not valid XML"),
    "xml_cut": ("<system><cpu numaid='0'>", "is not valid XML"),
    "xml_other": ("<html></html>", "the outermost element is 'html'; NCCL's is system"),
    "xml_empty": ("<system/>", "holds no GPU"),
    "hosts": ("n[1-999999999]\n", "names more than 131,072 hosts"),
    "long_line": ("x" * 60_000_000, "a line of 60,000,000 characters; at most 4,194,304 are read"),
    "commas": ("SwitchName=s Nodes=" + "a," * 400_000 + "n[1-", "names more than 131,072 hosts"),
    "blank_lines": ("\n" * 1_000_000, "is none of: a cluster file"),
    "cycle": ("SwitchName=a Switches=b\nSwitchName=b Switches=a\nSwitchName=b Nodes=n1", "is under itself"),
    "no_hosts": ("SwitchName=a Switches=b", "names no host"),
    "odd_line": ("SwitchName=a Nodes=b\nnonsense", "line 2: 'nonsense' starts with none of SwitchName="),
    "topo_cut": ("\tGPU0\tGPU1\tCPU Affinity\nGPU0\t X \tNV4\t0-3\n", "the row of GPU1 is missing"),
    "topo_cell": ("\tGPU0\tGPU1\tCPU Affinity\nGPU0\tX\tFAR\t0\nGPU1\tFAR\tX\t0\n", "'FAR' is none of X, NV#"),
    "topo_control": ("\tGPU0\tGPU1\tCPU Affinity\nGPU0\tX\tP\x00IX\t0\n", "column GPU1: 'P\\x00IX' is none of"),
}


FORKS = f"""
import json, os, resource, sys
import cost_models, planner.question.options
from planner.__main__ import main
for line in sys.stdin:
    folder, *words = json.loads(line)
    if (child := os.fork()) == 0:
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT), number)
        resource.setrlimit(resource.RLIMIT_CPU, ({CPU_S}, {CPU_S}))
        resource.setrlimit(resource.RLIMIT_DATA, ({BYTES}, {BYTES}))
        sys.argv = ["plan", *words]
        sys.exit(main())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""A process that has imported the planner and forks each command with limits: start-up is paid once."""


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """The one line that a command prints; a longer run, more memory, a traceback or another exit code fails."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as forks:
        assert forks.stdin and forks.stdout

        def answer(folder: Path, *words: str) -> str:
            assert forks.stdin and forks.stdout
            forks.stdin.write(json.dumps([str(folder), *words]) + "\n")
            forks.stdin.flush()
            code = int(forks.stdout.readline())
            out, err = ((folder / name).read_text() for name in ("stdout", "stderr"))
            assert code == 2, (code, err[-500:])
            assert out == "" and err.count("\n") == 1 and err.startswith("plan: ")
            return err

        yield answer
        forks.stdin.close()


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_hostile_cluster_file_is_refused_at_once(ask: Ask, name: str, tmp_path: Path) -> None:
    text, message = CLUSTERS[name]
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    assert message in ask(tmp_path, "--cluster", "c.yaml", "--ctx", "32K")


@pytest.fixture(scope="module")
def plan_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("plan")
    words = [sys.executable, "-m", "planner", "--gpus", "8", "--ctx", "32K"]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    return (folder / "plan.json").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"ranks": [[0, 0]', f'"ranks": [[0, {10**25}]', "ranks[0][1]: 10000000000000000000000000 must be finite"),
        ('"ranks": [[0, 0]', '"ranks": [[0, 2000000]', "ranks[0][1]: 2000000 is above its maximum of 1048576"),
        ('"ranks": [[0, 0]', f'"ranks": [[0, {"9" * 5000}]', "is not valid JSON: a number of more than"),
        ('"ranks": [[0, 0]', '"ranks": [' + "[" * 20_000 + "[0, 0]", "is not valid JSON: it nests too deeply"),
        ('"bound": ', '"bound": NaN, "gap": ', "NaN is no number of JSON"),
        ('"tokens": 32768', '"tokens": 1e999', "priced.tokens: inf must be finite"),
        ('"bound": ', '"bound": 1, "bound": ', "the key 'bound' is given twice"),
        ('"name": "dgx-h100"', '"name": "dgx-\\u202eh100"', "hides or reorders text"),
        ('"groups": {', '"groups": {"spare": [[0]], ', "groups has spare, pipeline"),
    ],
)
def test_a_hostile_plan_is_refused_at_once(
    ask: Ask, plan_text: str, tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in plan_text
    (tmp_path / "plan.json").write_text(plan_text.replace(old, new, 1))
    assert message in ask(tmp_path, "check", "plan.json")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "99999999999", "--ctx", "8K"], "--gpus 99999999999 is above 1,048,576"),
        (["--gpus", "８", "--ctx", "8K"], "--gpus '８' is not a whole number"),
        (["--gpus", "9" * 5000, "--ctx", "8K"], "is not a whole number of at least 1"),
        (["--gpus", "8", "--ctx", "８K"], "--ctx '８K' is not a positive number of tokens"),
    ],
)
def test_a_hostile_flag_is_refused_at_once(ask: Ask, tmp_path: Path, words: list[str], message: str) -> None:
    assert message in ask(tmp_path, *words)


DENSE = {
    "lists": "[" + "[]," * 2_000_000 + "[]]",
    "objects": '{"a": [' + '{"": 0},' * 1_000_000 + "{}]}",
    "keys": "{" + ",".join(f'"k{i}":1' for i in range(1_200_000)) + "}",
    "large": "\n" * 30_000_000,
}


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("entry", ["profile", "model", "plan", "lengths", "distances"])
def test_a_dense_or_large_file_is_refused_by_every_reader(ask: Ask, name: str, entry: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(DENSE[name])
    asked = {
        "profile": ["--gpus", "8", "--ctx", "32K", "--profile", "config.json"],
        "model": ["--gpus", "8", "--ctx", "32K", "--model", "."],
        "plan": ["explain", "config.json"],
        "lengths": ["--gpus", "8", "--ctx", "32K", "--lengths", "config.json"],
        "distances": ["distill", "keep", "config.json", "--gpus", "8", "--ctx", "32K", "--attention", "4"],
    }
    assert "config.json" in ask(tmp_path, *asked[entry])


def test_a_length_a_line_is_refused_by_their_number(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("tokens,count\n" + "1,1\n" * 4_000_000)
    said = ask(tmp_path, "--gpus", "8", "--ctx", "32K", "--lengths", "l.csv")
    assert "has 4,000,001 lines; at most 262,144 are read" in said


def test_the_schema_in_the_package_is_that_of_the_reader() -> None:
    """`make schema` writes it anew."""
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json.loads(schema_text())
