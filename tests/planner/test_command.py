"""The `plan` command as a user types it: answers, files, and one clear line for every mistake."""

import errno
import json
import os
import sys

import pytest

from cost_models.certificate import PATH
from cost_models.errors import InputError
from cost_models.hardware.device import Device
from planner.plan_file import Plan
from planner.question import options
from planner.question.pins import read_pins

SMALL = ["--gpus", "8", "--ctx", "32K"]


@pytest.fixture
def run(typed):
    return typed


def test_a_plan_is_shown_written_and_read_back(run, tmp_path):
    code, out, err = run(*SMALL)
    assert (code, err) == (0, "")
    for word in ("Plan ", "Step ", "Memory ", "MFU", "tokens/s/GPU", "simulated", "Runners-up", "gap", "Estimates"):
        assert word in out, word
    assert out.endswith("Wrote plan.json. Next: executor launch plan.json\n")
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.to_json() == (tmp_path / "plan.json").read_text()
    code, shown, _ = run("show", "plan.json")
    assert code == 0
    assert out.startswith(shown)
    code, checked, _ = run("check", "plan.json")
    assert code == 0
    assert "consistent" in checked


def test_same_question_same_bytes(run, tmp_path):
    run(*SMALL, "-o", "a.json")
    run(*SMALL, "-o", "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_json_is_the_plan_and_writes_nothing(run, tmp_path):
    code, out, _ = run(*SMALL, "--json")
    assert code == 0
    plan = json.loads(out)
    assert plan["version"] == 2
    assert sorted(rank for group in plan["groups"]["context"] for rank in group) == list(range(len(plan["ranks"])))
    assert list(tmp_path.iterdir()) == []


def test_pins_hold_and_explain_adds_up(run, tmp_path):
    code, out, _ = run(*SMALL, "--fix", "ulysses=2,recompute=full", "--explain")
    assert code == 0
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.strategy.ulysses == 2
    assert {part.recompute for part in plan.strategy.layer_ranges(32)} == {"full"}
    assert plan.fixed == {"ulysses": "2", "recompute": "full"}
    assert "Sent by a rank in one step" in out
    assert "FLOP of a step" in out
    assert sum(plan.cost.seconds.values()) == pytest.approx(plan.cost.step_s, rel=1e-12)


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_serving_modes(run, mode):
    code, out, _ = run(*SMALL, "--mode", mode)
    assert code == 0
    assert f"longvila-8b, {mode}" in out


def test_vision_without_frames_is_explained(run):
    words = "no frames, so each rank runs an empty one"
    assert words in run(*SMALL)[1] and words in run("price", *SMALL, "--strategy", "ulysses=8")[1]
    assert words not in run("--gpus", "8", "--frames", "64", "--ctx", "16K")[1]
    assert words not in run(*SMALL, "--model", "llama-3-8b")[1]


def test_what_counts_as_fitting_is_asked_for_kept_and_shown(run, tmp_path):
    """A row that fills a node's memory recomputes less with less confidence; the plan and its check keep the limit."""
    asked = ["--gpus", "8", "--ctx", "128K"]
    held = []
    for words in ([], ["--confidence", "0.6"], ["--headroom", "2GiB"]):
        code, out, _ = run(*asked, *words)
        plan = Plan.load(tmp_path / "plan.json")
        assert code == 0 and plan.room.holds(plan.cost)
        assert f"fits at {plan.bands['fits_at']:.0%}: " in out and "free as priced" in out and "LESS" not in out
        assert run("show", "plan.json")[1] in out
        held.append(plan.cost.memory_bytes)
    assert held[0] < held[1] < plan.cost.capacity_bytes
    assert run("check", "plan.json")[0] == 0
    out = run("price", *asked, "--strategy", "ulysses=8,zero=3,recompute=mlp", "--confidence", "0.999")[1]
    assert "LESS THAN the 99.9% confidence asked for" in out or "DOES NOT FIT" in out


def test_a_host_that_is_too_small_is_told_of_the_host(run, tmp_path):
    (tmp_path / "small.yaml").write_text("base: dgx-h100\nnodes: [{count: 1, host_memory_bytes: 16 GiB}]\n")
    layout = "ulysses=8,shard=8,zero=3,recompute=full,offload_states=optimizer"
    asked = ["--gpus", "8", "--ctx", "128K", "--model", "llama-3-8b", "--strategy", layout]
    code, out, _ = run("price", *asked, "--cluster", "small.yaml")
    assert code == 0 and "of 16.00 GiB per node  DOES NOT FIT" in out
    assert "fits at 99%: " in out and "LESS THAN" not in out  # of the GPUs


@pytest.mark.parametrize(("words", "message"), [
    (("--confidence", "0.3"), "--confidence '0.3'; legal: 0.5 to 0.999"),
    (("--confidence", "sure"), "--confidence 'sure'; legal: 0.5 to 0.999"),
    (("--headroom", "2"), "--headroom: '2' is not a number with one of the units"),
    (("--headroom", "2GiB", "--confidence", "0.9"), "give one of them"),
])  # fmt: skip
def test_a_wrong_limit_is_one_line(run, words, message):
    code, out, err = run(*SMALL, *words)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_the_model_is_trusted_where_asked(run):
    code, out, _ = run(*SMALL, "--trust-model")
    assert code == 0 and "Chosen by the model.\n" in out
    assert run("check", "plan.json")[0] == 0


def test_frames_are_told_apart_from_text(run):
    code, out, _ = run("--gpus", "8", "--frames", "64", "--ctx", "16K")
    assert code == 0
    assert "64 frames × 196" in out
    assert "vision" in out


def test_one_strategy_is_priced(run):
    code, out, _ = run("price", *SMALL, "--strategy", "ring=2,ulysses=4")
    assert code == 0
    assert "data 1 × ring 2 × ulysses 4, zero-3 over 8" in out
    code, out, _ = run("price", *SMALL, "--strategy", "ring=2,ulysses=4", "--json")
    cost = json.loads(out)
    assert cost["step_s"] == pytest.approx(sum(cost["seconds"].values()))
    band = cost["step_band_s"]
    assert band["low"] <= cost["step_s"] == band["middle"] <= band["high"] and band["level"] == 0.8
    assert cost["memory_band_bytes"]["low"] < cost["memory_bytes"] < cost["memory_band_bytes"]["high"]


def test_a_certificate_that_was_edited_is_refused_in_one_line(run, tmp_path):
    edited = tmp_path / "certificate.json"
    edited.write_text(PATH.read_text().replace('"residual": 0', '"residual": 1', 1))
    code, _, err = run("price", *SMALL, "--strategy", "ulysses=8", "--certificate", str(edited))
    assert code == 2 and err.count("\n") == 1 and "it was edited" in err


LLAMA = ["--gpus", "8", "--model", "llama-3-8b", "--strategy", "ring=2,ulysses=4,recompute=full"]


def test_the_longest_row_of_a_layout_is_printed_and_priced(run):
    code, out, err = run("price", *LLAMA, "--longest", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    most = found["longest_tokens"]
    assert most % 16 == 0 and found["fits"] and found["tokens"] == most
    above = json.loads(run("price", *LLAMA, "--ctx", str(most + 16), "--json")[1])
    assert not above["fits"] and "longest_tokens" not in above
    code, out, _ = run("price", *LLAMA, "--ctx", "32K", "--longest")
    assert code == 0 and f"Longest   {most:,} tokens" in out and "32K" in out


def test_frames_keep_their_place_in_the_longest_row(run):
    vision = ["--gpus", "8", "--strategy", "ulysses=8,recompute=full", "--frames", "64", "--longest", "--json"]
    code, out, err = run("price", *vision)
    assert (code, err) == (0, "")
    assert json.loads(out)["longest_tokens"] > 64 * 196


def test_a_plan_is_simulated_with_a_trace(run, tmp_path):
    run(*SMALL)
    code, out, _ = run("simulate", "plan.json", "--trace", "trace.json")
    assert code == 0
    assert "simulated" in out
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


MISTAKES = [
    (["--gpus", "0", "--ctx", "2M"], "--gpus '0' is not a whole number of at least 1"),
    (["--gpus", "8", "--ctx", "0"], "--ctx '0' is not a whole number of tokens"),
    (["--gpus", "8", "--ctx", "2m"], "lower-case m is milli; write 2M"),
    (["--gpus", "8", "--ctx", "many"], "--ctx 'many' is not a positive number of tokens"),
    (["--gpus", "8"], "--ctx is missing"),
    (["--ctx", "8K"], "--gpus is missing"),
    ([*SMALL, "--model", "longvila-9b"], "did you mean longvila-8b"),
    ([*SMALL, "--cluster", "nowhere.yaml"], "is neither a preset nor a file"),
    ([*SMALL, "--mode", "trian"], "did you mean train"),
    ([*SMALL, "--objective", "joy"], "legal: time, memory, gpu-hours"),
    ([*SMALL, "--fix", "ulyses=8"], "did you mean ulysses"),
    ([*SMALL, "--fix", "ulysses"], "is not name=value"),
    (["--gpus", "256", "--ctx", "2M", "--fix", "ulysses=64"], "ulysses=64 exceeds the 32 query heads"),
    ([*SMALL, "--fix", "recompute=some"], "recompute='some' is unknown"),
    ([*SMALL, "--batch", "-1"], "--batch '-1' is not a whole number"),
    ([*SMALL, "--precision", "int4"], "legal: bf16, fp16, fp32"),
    ([*SMALL, "-o", "missing/plan.json"], "the folder 'missing' is not there"),
    ([*SMALL, "--profile", "none.json"], "no such file"),
    (["--gpu", "8", "--ctx", "8K"], "No such option '--gpu'"),
    (["simulate", "none.json"], "no such file"),
    (["price", *SMALL, "--strategy", "ring=16"], "16 ranks on 8 free GPUs"),
    (["price", "--gpus", "8", "--strategy", "ring=8"], "--ctx is missing"),
    (["price", "--gpus", "8", "--strategy", "ring=16", "--longest"], "16 ranks on 8 free GPUs"),
    (
        ["price", "--gpus", "1", "--model", "llama-3-70b", "--strategy", "data=1", "--longest"],
        "--longest: no row fits: 2 tokens already need",
    ),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[" ".join(words[-2:]) for words, _ in MISTAKES])
def test_mistakes_get_one_line_and_exit_code_2(run, tmp_path, words, message):
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.startswith("plan: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_would_fit_is_told(run, tmp_path):
    code, out, err = run("--gpus", "8", "--ctx", "32M")  # more than all levers hold
    assert code == 2
    assert out == ""
    first, *remedies = err.splitlines()
    assert first.startswith("plan: ")
    assert any("GPUs" in line for line in remedies)
    assert any("context" in line for line in remedies)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [2, 100, 4000])
def test_a_truncated_plan_is_refused(run, tmp_path, cut):
    run(*SMALL)
    whole = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(whole[:-cut])
    code, _, err = run("show", "plan.json")
    assert code == 2
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan.update(version=1), "plan version 1 is not 2"),
        (lambda plan: plan.update(extra=1), "extra"),
        (lambda plan: plan["strategy"].update(ulyses=8), "ulyses is unknown"),
        (lambda plan: plan["groups"]["ring"].reverse(), "groups.ring is not what the degrees"),
        (lambda plan: plan["ranks"].__setitem__(0, plan["ranks"][1]), "two ranks on one GPU"),
        (lambda plan: plan["cluster"].update(name="other"), "does not have the digest"),
        (lambda plan: plan["memory"]["parts"].update(parameters=-1), "minimum"),
        (lambda plan: plan["memory"].update(parts={}), "memory.parts has none; legal, and all needed: parameters, "),
        (lambda plan: plan["memory"]["parts"].update(spare=1), "memory.parts has parameters, gradients"),
        (lambda plan: plan["memory"]["parts"].update(activations=0), "outside bands.memory_bytes ("),
    ],
)
def test_a_changed_plan_is_refused_by_key(run, tmp_path, change, message):
    run("--gpus", "8", "--ctx", "32K", "--fix", "ring=4,ulysses=2")
    plan = json.loads((tmp_path / "plan.json").read_text())
    change(plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code, _, err = run("show", "plan.json")
    assert code == 2
    assert message in err


def test_pins_are_parsed_strictly():
    assert read_pins(None) == {}
    assert read_pins("zero=2, shard=8") == {"zero": 2, "shard": 8}


def test_a_mixture_of_experts_is_priced_but_not_planned(run, tmp_path):
    question = ("--model", "deepseek-v3", "--cluster", "dgx-h100", "--gpus", "64", "--ctx", "4096", "--batch", "64")
    code, out, err = run(*question)
    assert (code, out) == (2, "")
    assert "--model 'deepseek-v3' has experts and latent attention: priced, but neither planned nor run" in err
    assert list(tmp_path.iterdir()) == []
    code, out, err = run("price", *question, "--strategy", "data=64,shard=64,expert=64")
    assert (code, err) == (0, "")
    assert "experts' all-to-all" in out and "data 64 × ring 1 × ulysses 1 × expert 64, zero-3 over 64" in out
    code, _, err = run("price", *SMALL, "--strategy", "data=1,expert=8")
    assert code == 2 and "expert=8 does not divide data x context x tensor = 1" in err


def test_adapters_are_planned_and_only_their_plan_names_them(run):
    code, out, err = run(*SMALL, "--lora-rank", "8", "--lora-beside", "embeddings,norms", "--json")
    assert (code, err) == (0, "")
    adapted = json.loads(out)
    assert (adapted["workload"]["lora_rank"], adapted["workload"]["lora_beside"]) == (8, ["embeddings", "norms"])
    whole = json.loads(run(*SMALL, "--json")[1])
    assert not {"lora_rank", "lora_targets", "lora_beside"} & set(whole["workload"])
    assert "expert" not in whole["strategy"] and not {"experts", "latent"} & set(whole["workload"]["model"])
    assert adapted["priced"]["step_s"] < whole["priced"]["step_s"]
    code, _, err = run(*SMALL, "--lora-rank", "8", "--lora-beside", "bias")
    assert code == 2 and "lora_beside: 'bias' is unknown; legal: embeddings, norms" in err


def test_a_frozen_part_costs_no_gradient_and_parts_are_checked(run):
    video = ("--model", "longvila-8b", "--gpus", "8", "--ctx", "32K", "--frames", "64", "--json")
    plans = {parts: json.loads(run(*video, "--train", parts)[1]) for parts in ("tower,llm,projector", "llm")}
    assert [plan["workload"]["trainable"] for plan in plans.values()] == [["llm", "projector", "tower"], ["llm"]]
    whole, part = (plan["priced"]["seconds"]["vision"] for plan in plans.values())
    assert part == pytest.approx(whole / 3, rel=0.3)  # forward alone, of forward and twice that
    code, _, err = run(*SMALL, "--train", "llm,head")
    assert code == 2 and "--train 'llm,head'; legal: some of llm, projector, tower, each once" in err


def test_clusters_and_devices_are_listed_with_their_sources(run):
    code, out, err = run("clusters")
    assert (code, err) == (0, "") and "jean-zay-v100" in out and "Omni-Path" in out
    code, out, err = run("devices")
    assert (code, err) == (0, "") and "125 TFLOP/s fp16  estimate  NVIDIA V100 data sheet" in out


def test_one_wrong_preset_hides_no_other(run, monkeypatch):
    right = Device.load

    def load(name):
        if name == "t4":
            raise InputError("t4: architecture='cdna5'; legal: volta")
        return right(name)

    monkeypatch.setattr(Device, "load", load)
    code, out, _ = run("devices")
    assert code == 0 and "t4                     t4: architecture='cdna5'; legal: volta" in out and "a10g " in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: dgx-h100\nnodes: [{count: 1, device: H100}]", "device='H100' is unknown; nearest: h100-"),
        ("base: dgx-h100\nnodes: [{count: 1, nics: {count: 8, bytes_per_s: -5, latency_s: 0}}]", "bytes_per_s=-5"),
        ("base: dgx-h100\nnodes: [{count: 1, nics: {count: 8, latency_s: 0}}]", "bytes_per_s is missing"),
    ],
)
def test_a_wrong_cluster_file_is_one_line_and_exit_code_2(run, tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    code, out, err = run("--ctx", "32K", "--cluster", "mine.yaml")
    assert (code, out) == (2, "") and err.count("\n") == 1 and message in err


def test_cards_without_bf16_are_planned_in_fp16(run):
    code, out, _ = run("--gpus", "8", "--ctx", "8K", "--cluster", "dgx-1v", "--model", "longvila-1.5b")
    assert code == 0 and "v100-sxm2-32gb" in out
    code, _, err = run("--gpus", "8", "--ctx", "8K", "--cluster", "dgx-1v", "--precision", "bf16")
    assert code == 2 and "v100-sxm2-32gb has no bf16 peak; it has fp16, fp32" in err


PRICED = ["price", "--gpus", "8", "--ctx", "8K", "--batch", "8", "--strategy"]


def test_a_price_names_a_framework(run):
    code, ours, _ = run(*PRICED, "data=8", "--json")
    assert code == 0 and json.loads(ours)["framework"] == "ours"
    code, out, _ = run(*PRICED, "data=8", "--for", "torchtitan", "--json")
    found = json.loads(out)
    assert code == 0 and found["framework"] == "torchtitan" and found["step_s"] != json.loads(ours)["step_s"]
    code, out, _ = run(*PRICED, "data=8", "--for", "torchtitan")
    assert "as torchtitan: FSDP2 under torch.compile runs it" in out
    code, out, _ = run("price", "--gpus", "8", "--strategy", "ulysses=8", "--longest", "--for", "megatron-te")
    assert code == 0 and "tokens in a row fit" in out


def test_zero_1_is_said_to_run_as_zero_2_where_it_does(run):
    assert "zero=1 runs as zero=2" in run(*PRICED, "data=8,zero=1")[1]
    assert "zero=1 runs as zero=2" not in run(*PRICED, "data=8,zero=1", "--for", "megatron-te")[1]
    assert "zero=1 runs as zero=2" not in run(*PRICED, "data=8,zero=2")[1]


def test_frameworks_are_listed_with_their_reasons(run):
    code, out, _ = run("frameworks")
    assert code == 0 and "\ntorchtitan " in out and "yunchang" not in out
    code, out, _ = run("frameworks", "torchtitan")
    assert code == 0 and "norm=fused, rotary=fused, activation=fused\n    Inductor fuses" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--for", "torchtitna"], "--for 'torchtitna' is unknown; did you mean torchtitan? (legal: "),
        (["--for", "yunchang"], "--for 'yunchang' is unknown; "),
        (["--for", "torchtitan", "--precision", "fp16"], "--precision 'fp16' with --for torchtitan"),
    ],
)
def test_a_wrong_framework_is_one_line(run, words, message):
    code, out, err = run(*PRICED, "data=8", *words)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_the_bound_names_the_space_that_was_searched(run):
    code, out, _ = run(*SMALL, "--fix", "ulysses=4")
    words = " ".join(out.split())
    assert code == 0 and "No layout of this space is priced below" in words and "on any placement (gap" in words
    assert "Searched data 1; microbatches 1; ring 1-2; shard all ranks," in words
    assert "recompute by layer none, mlp, all_but_attention, full" in words
    assert "Held ulysses 4, tensor 1, pipeline 1, expert 1," in words and "more at their defaults (--explain)" in words
    levers = "inputs on the host, mlp_chunk_tokens, loss_chunk_tokens, attention_head_chunks, attention_chunk_tokens, "
    levers += "offload_states"
    assert "Untried 6 levers of memory (docs/memory.md): tried where recompute costs over 2% of the step" in words
    whole = " ".join(run("show", "plan.json", "--explain")[1].split())
    assert "loss_chunk_tokens 1024" in whole and levers in whole
    space = json.loads(run(*SMALL, "--mode", "prefill", "--json")[1])["searched"]
    assert list(space["varied"]) == ["data", "ring", "ulysses", "shard", "zero"]
    assert space["varied"]["ulysses"] == "1-8" and space["varied"]["ring"] == "1-8"
    assert {"tensor": "1", "pipeline": "1", "microbatches": "1", "recompute": "none"}.items() <= space["held"].items()


def test_at_the_time_limit_the_plan_says_that_it_is_not_reproducible(run):
    code, out, _ = run("--gpus", "64", "--ctx", "1M", "--time-limit", "1e-6")
    assert code == 0 and "stopped at the time limit: not reproducible" in " ".join(out.split())
    plan = Plan.load("plan.json")
    assert not plan.reproducible and 0 < plan.bound <= plan.cost.step_s
    code, out, _ = run("check", "plan.json")
    assert code == 0 and "bound, choice and alternatives are not checked" in out
    code, _, err = run(*SMALL, "--time-limit", "soon")
    assert code == 2 and "--time-limit 'soon' is not a number of seconds above 0" in err


EDITS = {
    "bound": lambda plan: plan.update(bound=1e-9, gap=1.0),
    "gap": lambda plan: plan.update(gap=0.5),
    "simulated": lambda plan: plan["simulated"].update(step_s=1e-9),
    "memory.capacity_bytes": lambda plan: plan["memory"].update(capacity_bytes=10**15),
    "priced.step_s": lambda plan: plan["priced"].update(step_s=1e-9),
    "priced.model_flops": lambda plan: plan["priced"].update(model_flops=1e30),
    "alternatives": lambda plan: plan.update(alternatives=[]),
    "chosen_by": lambda plan: plan.update(chosen_by="simulator"),
    "objective": lambda plan: plan.update(objective="memory"),
    "fixed": lambda plan: plan.update(fixed={"ulysses": "999"}),
    "searched.varied": lambda plan: plan["searched"]["varied"].update(tensor="1-8"),
    "searched.held.tensor": lambda plan: plan["searched"]["held"].update(tensor="8"),
    "regret": lambda plan: plan.update(regret={"most": 0.5, "scenario": "one slow node", "tied": 2}),
    "priced.seconds.": lambda plan: plan["priced"]["seconds"].update(
        compute=plan["priced"]["seconds"]["compute"] + plan["priced"]["seconds"].pop("vision"), vision=0.0
    ),
}


@pytest.mark.parametrize("key", EDITS)
def test_an_edited_number_is_not_called_consistent(run, tmp_path, key):
    run(*SMALL, "--fix", "ulysses=2")
    plan = json.loads((tmp_path / "plan.json").read_text())
    EDITS[key](plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code, out, err = run("check", "plan.json")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert key in err or "ulysses=999" in err or key == "objective"


def test_a_package_that_is_not_installed_is_one_line(run, monkeypatch):
    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(options, "question", missing)
    code, out, err = run(*SMALL)
    assert (code, out) == (2, "")
    assert err == "plan: needs the package torch, which is not installed: pip install 'mmsp[executor]'\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "9" * 5000],
        ["--cluster", "9" * 5000],
        ["--fabric", "9" * 5000],
        ["--profile", "9" * 5000],
        ["-o", "9" * 5000],
        ["--report", "9" * 5000],
        ["--model", "a\0b"],
        ["--cluster", "a\0b"],
    ],
)
def test_a_name_that_no_file_can_have_is_one_line(run, words):
    code, _, err = run(*SMALL, *words)
    assert code == 2
    assert err.count("\n") == 1 and err.startswith("plan: ")


@pytest.mark.parametrize("flag", ["-o", "--report"])
def test_a_file_replaces_no_pipe_and_follows_links(run, tmp_path, flag):
    """A rename would put a plain file in a device's place: `-o /dev/null` as root must leave the device there."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code, _, err = run(*SMALL, flag, str(pipe))
    assert (code, err.count("\n")) == (2, 1) and "is a device or a pipe" in err
    assert pipe.is_fifo()
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    assert run(*SMALL, flag, str(link))[0] == 0
    assert link.is_symlink() and target.is_file()


def test_an_answer_that_cannot_be_written_is_one_line(run, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("planner.command.click.echo", full)
    monkeypatch.setattr("planner.console._fail", lambda name, message: sys.exit(message))
    assert run("clusters")[0] == "the answer cannot be written: No space left on device"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*SMALL, "-o", ""], "--output '' is empty"),
        ([*SMALL, "--fix", ""], "--fix '' is empty"),
        (["what-if", *SMALL, "--vary", ""], "--vary '' is empty"),
        (["price", *SMALL, "--strategy", ""], "--strategy '' is empty"),
        (["show", ""], "PLAN '' is empty"),
        (["topology", "--cluster", ""], "--cluster '' is empty"),
    ],
)
def test_an_empty_value_is_a_mistake(run, tmp_path, words, message):
    """`-o "$OUT"` with OUT unset must not write to plan.json."""
    code, out, err = run(*words)
    assert (code, out) == (2, "") and err == f"plan: {message}; give a value, or leave it out\n"
    assert list(tmp_path.iterdir()) == []


def test_hosts_are_written_into_the_plan(run, tmp_path):
    code, out, _ = run("--hosts", "gpu[001-002]", "--ctx", "32K")
    assert code == 0 and "          on gpu[001-002]\n" in out
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.cluster.hosts == ("gpu001", "gpu002") and run("show", "plan.json")[1].count("gpu[001-002]") == 1
    for words, message in (
        (["--gpus", "8", "--hosts", "a,b"], "--hosts names 2 hosts, the cluster has 1 nodes; give as many"),
        (["--hosts", "gpu[2-1]"], "neither a number nor a range"),
    ):
        code, _, err = run(*words, "--ctx", "32K")
        assert code == 2 and message in err and err.count("\n") == 1


def test_an_option_that_is_none_names_the_command_that_would_list_them(typed):
    code, _, told = typed("what-if", "--nope")
    assert code == 2 and told.startswith("plan: No such option '--nope'") and told.endswith("see plan what-if --help\n")
