"""Extraction as a whole: layers, resuming, data types, refusals."""

import errno
import json
import os
import shutil
from dataclasses import replace
from datetime import date

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from activation_store import (
    ActivationStore,
    DeviceMemoryError,
    Extraction,
    FingerprintMismatchError,
    InputError,
    NonFiniteError,
    ParityError,
    StoreLockedError,
)
from activation_store.capture.hidden_states import HiddenStates
from activation_store.extraction.arguments import parse_layers
from activation_store.files.lock import WriterLock
from activation_store.models import loading
from tests.activation_store.capture.test_parity import leak_between_rows
from tests.helpers.models import CHATML, N_BLOCKS, QUESTIONS, save_model, train_tokenizer
from tests.helpers.stores import tree


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", tuple(range(31))),
        ("-1", (30,)),
        ("0,1,2", (0, 1, 2)),
        ("2, 0, 2", (0, 2)),
        ("0-3", (0, 1, 2, 3)),
        ("0-2,30", (0, 1, 2, 30)),
        ("-31", (0,)),
        ([5, -2], (5, 29)),
    ],
)
def test_layer_specifications(layers, expected):
    assert parse_layers(layers, 30) == expected


@pytest.mark.parametrize("layers", ["31", "-32", "0-31", "3-1", "a", "1,", "", "1.5", "all,1", "--1"])
def test_unknown_layers_are_refused(layers):
    with pytest.raises(InputError, match="layers="):
        parse_layers(layers, 30)


def run(folder, dataset, path, **options):
    return Extraction(
        str(folder), dataset, path, use_chat_template=True, batch_size=3, shard_samples=4, device="cpu", **options
    ).run()


@pytest.mark.slow
def test_interrupted_extraction_resumes_byte_identical(tiny_model, dataset, tmp_path, monkeypatch):
    folder = tiny_model("llama")
    run(folder, dataset, tmp_path / "whole.zarr")
    forward, calls = HiddenStates.start, []

    def interrupted(self, prompts):
        calls.append(len(prompts))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return forward(self, prompts)

    monkeypatch.setattr(HiddenStates, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folder, dataset, tmp_path / "cut.zarr")
    monkeypatch.setattr(HiddenStates, "start", forward)
    assert 0 < ActivationStore.open(tmp_path / "cut.zarr").n_committed < 11
    run(folder, dataset, tmp_path / "cut.zarr")
    assert tree(tmp_path / "cut.zarr") == tree(tmp_path / "whole.zarr")


def test_a_resume_with_other_batches_is_told(tiny_model, dataset, tmp_path, monkeypatch, caplog):
    folder = tiny_model("llama")
    start, calls = HiddenStates.start, []

    def interrupted(self, prompts):
        calls.append(len(prompts))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return start(self, prompts)

    monkeypatch.setattr(HiddenStates, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folder, dataset, tmp_path / "cut.zarr")
    monkeypatch.setattr(HiddenStates, "start", start)
    caplog.clear()
    options = {"use_chat_template": True, "shard_samples": 4, "device": "cpu", "batch_size": 1}
    store = Extraction(str(folder), dataset, tmp_path / "cut.zarr", **options).run()
    assert "the last bits of the remaining values may differ" in caplog.text
    assert set(store.attrs["provenance"]["parity"]) == {"tolerance", "largest_error"}


def test_a_template_that_writes_the_day_is_told_on_another_day(tiny_model, dataset, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "dated"
    shutil.copytree(tiny_model("llama"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    store = run(folder, dataset, tmp_path / "s.zarr")
    assert date.fromisoformat(store.attrs["provenance"]["template_day"]) <= date.today()
    run(folder, dataset, tmp_path / "s.zarr")
    assert "can insert the date into prompts" not in caplog.text

    class Tomorrow(date):
        @classmethod
        def today(cls):
            return date.fromordinal(date.today().toordinal() + 1)

    monkeypatch.setattr("activation_store.extraction.extract.date", Tomorrow)
    run(folder, dataset, tmp_path / "s.zarr")
    assert "this chat template can insert the date into prompts" in caplog.text
    # As where the date that was inserted has changed the prompts.
    caplog.clear()
    frame = pd.read_parquet(dataset)
    frame.assign(question=frame.question + " today").to_parquet(dataset)
    with pytest.raises(FingerprintMismatchError):
        run(folder, dataset, tmp_path / "s.zarr")
    assert "this chat template can insert the date into prompts" in caplog.text


@pytest.mark.parametrize("name", ["add_generation_prompt", "continue_final_message", "tokenize"])
def test_template_arguments_that_are_not_the_templates_are_refused(name, tiny_model, dataset, tmp_path):
    with pytest.raises(InputError, match=rf"chat_template_kwargs=\.\.\.: {name} would change how prompts are rendered"):
        run(tiny_model("llama"), dataset, tmp_path / "s.zarr", chat_template_kwargs={name: False})


def test_a_second_writer_is_refused_at_once(tiny_model, dataset, tmp_path, monkeypatch):
    run(tiny_model("llama"), dataset, tmp_path / "s.zarr")
    monkeypatch.setattr(loading, "load_tokenizer", None)
    lock = WriterLock.acquire(tmp_path / "s.zarr/activations/writer.lock", tmp_path / "s.zarr")
    with pytest.raises(StoreLockedError, match=f"is being written by process {os.getpid()}"):
        run(tiny_model("llama"), dataset, tmp_path / "s.zarr")
    lock.release()


def test_a_finished_store_needs_no_weights(tiny_model, dataset, tmp_path, monkeypatch):
    folder = tiny_model("llama")
    before = run(folder, dataset, tmp_path / "s.zarr")
    monkeypatch.setattr(HiddenStates, "load", None)
    assert run(folder, dataset, tmp_path / "s.zarr").shape == before.shape


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"layers": "0"}, "layers"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"eoi_tokens": 2}, "positions"),
        ({"max_samples": 5}, "dataset"),
    ],
)
def test_changed_inputs_are_refused(options, field, tiny_model, dataset, tmp_path):
    folder = tiny_model("llama")
    run(folder, dataset, tmp_path / "s.zarr")
    with pytest.raises(FingerprintMismatchError, match=f"{field}: .* in the store, .* now"):
        run(folder, dataset, tmp_path / "s.zarr", **options)


@pytest.mark.slow
def test_truncation_is_recorded_and_belongs_to_the_store(tiny_model, dataset, tmp_path):
    folder = tiny_model("llama")
    assert run(folder, dataset, tmp_path / "whole.zarr").attrs["fingerprint"]["truncation"] is None
    whole = ActivationStore.open(tmp_path / "whole.zarr")
    store = run(folder, dataset, tmp_path / "cut.zarr", max_length=30, truncate=True)
    assert store.attrs["fingerprint"]["truncation"]["max_length"] == 30
    assert "end of the last user message" in store.attrs["fingerprint"]["truncation"]["rule"]
    cut = whole.n_tokens > 30
    assert store.attrs["provenance"]["truncated_rows"] == np.flatnonzero(cut).tolist()
    assert 0 < cut.sum() < len(cut)
    assert store.n_tokens.max() == 30
    assert ((store.coordinate("prompt_hash") == whole.coordinate("prompt_hash")) == ~cut).all()
    assert store.coordinate("question").tolist() == QUESTIONS
    assert (store.coordinate("token_id") == whole.coordinate("token_id")).all()
    with pytest.raises(FingerprintMismatchError, match="truncation: "):
        run(folder, dataset, tmp_path / "cut.zarr", max_length=31, truncate=True)
    with pytest.raises(FingerprintMismatchError, match=r"truncation: .* in the store, None now"):
        run(folder, dataset, tmp_path / "cut.zarr")


def test_conversations_from_json_lines(tiny_model, tmp_path):
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|im_end|>"}]
    rows = [{"question": conversation, "success_rate": 0.5}, {"question": "Hi", "success_rate": 1}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    store = run(tiny_model("llama"), tmp_path / "d.jsonl", tmp_path / "s.zarr")
    assert json.loads(store.coordinate("question")[0]) == conversation
    assert store.coordinate("question")[1] == "Hi"
    assert store.attrs["provenance"]["control_strings"] == {"rows_as_text": 1, "rows_as_tokens": []}
    assert (store.coordinate("token")[0] == store.coordinate("token")[1]).all()


def test_a_changed_dataset_template_or_tokenizer_is_refused(dataset, tmp_path):
    folder = save_model(tmp_path / "model", "llama")
    run(folder, dataset, tmp_path / "s.zarr")
    frame = pd.read_parquet(dataset)
    changes = {
        "order": frame.iloc[::-1],
        "question": frame.assign(question=[*frame.question[:-1], "another"]),
        "label": frame.assign(success_rate=frame.success_rate / 2),
    }
    for name, changed in changes.items():
        changed.to_parquet(tmp_path / f"{name}.parquet")
        with pytest.raises(FingerprintMismatchError, match=r"dataset: '[0-9a-f]{12}\.\.\.' in the store"):
            run(folder, tmp_path / f"{name}.parquet", tmp_path / "s.zarr")
    frame.iloc[:4].to_parquet(tmp_path / "short.parquet")
    with pytest.raises(FingerprintMismatchError, match="n_samples: 11 in the store, 4 now"):
        run(folder, tmp_path / "short.parquet", tmp_path / "s.zarr")
    frame.assign(other=frame.success_rate).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(FingerprintMismatchError, match=r"label_columns: \['success_rate'\] in the store, \['other'\]"):
        run(folder, tmp_path / "other.parquet", tmp_path / "s.zarr", label_column="other")
    with pytest.raises(FingerprintMismatchError, match=r"chat_template_kwargs: \{\} in the store, \{'enable"):
        run(folder, dataset, tmp_path / "s.zarr", chat_template_kwargs={"enable_thinking": False})
    train_tokenizer(CHATML.replace("system", "System") + " ").save_pretrained(folder)
    with pytest.raises(FingerprintMismatchError, match="chat_template: "):
        run(folder, dataset, tmp_path / "s.zarr")
    train_tokenizer(bos=True).save_pretrained(folder)
    with pytest.raises(FingerprintMismatchError, match="tokenizer: "):
        run(folder, dataset, tmp_path / "s.zarr")
    train_tokenizer().save_pretrained(folder)
    assert run(folder, dataset, tmp_path / "s.zarr").n_committed == 11


def test_changed_weights_are_refused(dataset, tmp_path):
    folder = save_model(tmp_path / "model", "llama")
    run(folder, dataset, tmp_path / "s.zarr")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(FingerprintMismatchError, match="weights: "):
        run(folder, dataset, tmp_path / "s.zarr")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stores_what_the_model_computes_without_loss(dtype, dataset, tmp_path):
    folder = save_model(tmp_path / "model", "llama", dtype=getattr(torch, dtype))
    auto = run(folder, dataset, tmp_path / "auto.zarr")
    assert auto.dtype.name == dtype
    wide = run(folder, dataset, tmp_path / "wide.zarr", dtype="float32")
    assert wide.dtype == np.float32
    for layer in auto.layers:
        found, expected = auto.cell(layer, -1).astype(np.float64), wide.cell(layer, -1).astype(np.float64)
        rms = np.sqrt(np.square(expected).mean())
        assert 0 < np.abs(found - expected).max() < 0.2 * rms or layer == 0


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        (
            "float32",
            torch.inf,
            r"in float32, first returned by layers\.1\.mlp\.down_proj \(Linear\); try dtype='float32'",
        ),
        ("float16", 6e4, r"in float16, first returned by layers\.1\.mlp\.down_proj \(Linear\); .* dtype='bfloat16'"),
    ],
)
def test_non_finite_values_stop_with_rows_layer_and_module(dtype, value, message, dataset, tmp_path):
    folder = save_model(tmp_path / "model", "llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(value)
    model.save_pretrained(folder)
    with pytest.raises(NonFiniteError, match=rf"NaN or infinity for row.* first at layer 2 \(row \d+\), {message}"):
        run(folder, dataset, tmp_path / "s.zarr", dtype=dtype)
    assert ActivationStore.open(tmp_path / "s.zarr").n_committed == 0


@pytest.mark.slow
def test_memory_that_ends_splits_batches_and_changes_no_values(tiny_model, dataset, tmp_path, monkeypatch, caplog):
    whole = run(tiny_model("llama"), dataset, tmp_path / "whole.zarr")
    forward = HiddenStates.start

    def small(self, prompts):
        if len(prompts) * max(map(len, prompts)) > 60:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, prompts)

    monkeypatch.setattr(HiddenStates, "start", small)
    split = run(tiny_model("llama"), dataset, tmp_path / "split.zarr")
    assert "split in half" in caplog.text
    for layer in whole.layers:
        expected = whole.cell(layer, -1)
        np.testing.assert_allclose(split.cell(layer, -1), expected, atol=1e-5 * np.abs(expected).max())


def test_a_row_that_does_not_fit_in_memory_is_named(tiny_model, dataset, tmp_path, monkeypatch):
    def small(_self, _prompts):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(HiddenStates, "start", small)
    with pytest.raises(DeviceMemoryError, match=r"row 2 with \d+ tokens does not fit"):
        run(tiny_model("llama"), dataset, tmp_path / "s.zarr")


@pytest.mark.slow
def test_a_model_whose_rows_see_each_other_stops_before_the_store(tiny_model, dataset, tmp_path, monkeypatch):
    load = AutoModelForCausalLM.from_pretrained

    def leaking(*args, **kwargs):
        model, found = load(*args, **kwargs)
        leak_between_rows(model)
        return model, found

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", leaking)
    with pytest.raises(ParityError, match="batch_size=1"):
        run(tiny_model("llama"), dataset, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()
    assert Extraction(
        str(tiny_model("llama")), dataset, tmp_path / "s.zarr", use_chat_template=True, batch_size=1, device="cpu"
    ).run()


def count_embedded_tokens(monkeypatch):
    """Tokens that enter a model after its check, by batch."""
    n_tokens, start = [], HiddenStates.start

    def counted(self, prompts):
        handle = self._decoder.embed_tokens.register_forward_hook(lambda _m, _a, out: n_tokens.append(out.shape[:2]))
        try:
            return start(self, prompts)
        finally:
            handle.remove()

    monkeypatch.setattr(HiddenStates, "start", counted)
    return n_tokens


@pytest.mark.slow
def test_the_prefix_of_all_prompts_is_run_once(tiny_model, dataset, tmp_path, monkeypatch):
    frame = pd.read_parquet(dataset)
    frame.question = "Answer the question about numbers or letters. " + frame.question
    frame.to_parquet(dataset)
    sizes = count_embedded_tokens(monkeypatch)
    plain = run(tiny_model("llama"), dataset, tmp_path / "plain.zarr", prefix_cache=False)
    assert sum(rows for rows, _ in sizes) == 11
    longest = max(tokens for _, tokens in sizes)
    sizes.clear()
    reused = run(tiny_model("llama"), dataset, tmp_path / "reused.zarr")
    n_prefix = reused.attrs["provenance"]["batch_plan"]["prefix_tokens"]
    assert n_prefix > 8
    assert plain.attrs["provenance"]["batch_plan"]["prefix_tokens"] == 0
    assert max(tokens for _, tokens in sizes) == longest - n_prefix
    for layer in plain.layers:
        for position in plain.positions:
            expected = plain.cell(layer, position)
            np.testing.assert_allclose(reused.cell(layer, position), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_a_resumed_store_keeps_its_batches_whatever_memory_is_free(tiny_model, dataset, tmp_path, monkeypatch):
    folder = str(tiny_model("llama"))
    options = {"use_chat_template": True, "shard_samples": 4, "device": "cpu"}
    monkeypatch.setattr("activation_store.extraction.model_run.free_nbytes", lambda _device: 2**19)
    whole = Extraction(folder, dataset, tmp_path / "whole.zarr", **options).run()
    plan = whole.attrs["provenance"]["batch_plan"]
    assert 1 < plan["max_tokens"] < 200
    assert plan["max_rows"] is None
    start, calls = HiddenStates.start, []

    def interrupted(self, prompts):
        calls.append(len(prompts))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return start(self, prompts)

    monkeypatch.setattr(HiddenStates, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Extraction(folder, dataset, tmp_path / "cut.zarr", **options).run()
    monkeypatch.setattr("activation_store.extraction.model_run.free_nbytes", lambda _device: 2**40)
    Extraction(folder, dataset, tmp_path / "cut.zarr", **options).run()
    assert tree(tmp_path / "cut.zarr") == tree(tmp_path / "whole.zarr")


def test_a_preview_tells_what_the_run_then_does(tiny_model, dataset, tmp_path, monkeypatch):
    extraction = Extraction(
        str(tiny_model("llama")), dataset, tmp_path / "s.zarr", use_chat_template=True, shard_samples=4, device="cpu"
    )
    load = HiddenStates.load
    monkeypatch.setattr(HiddenStates, "load", None)
    text = extraction.preview()
    assert not (tmp_path / "s.zarr").exists()
    monkeypatch.setattr(HiddenStates, "load", load)
    sizes = count_embedded_tokens(monkeypatch)
    store = extraction.run()
    told = dict(line.split(maxsplit=1) for line in text.split("\n\n")[0].replace("peak memory", "peak").splitlines())
    n_prefix = store.attrs["provenance"]["batch_plan"]["prefix_tokens"]
    assert told["rows"] == "11"
    assert told["tokens"].startswith(
        f"{store.n_tokens.sum()}: {store.n_tokens.min()} to {store.n_tokens.max()} per row"
    )
    padded = sum(rows * tokens for rows, tokens in sizes)
    padding = 100 * (1 - (store.n_tokens - n_prefix).sum() / padded)
    assert told["batches"] == f"{len(sizes)}; {padding:.1f} % of their tokens are padding"
    assert f"{list(store.shape)} float32" in told["store"]
    assert "in 3 shards of up to 4 rows" in told["store"]
    n_bytes = sum(file.stat().st_size for file in (tmp_path / "s.zarr/activations/c").rglob("*") if file.is_file())
    assert abs(float(told["store"].split("float32, ")[1].split(" MiB")[0]) - n_bytes / 2**20) < 0.06
    weights = AutoModelForCausalLM.from_pretrained(tiny_model("llama")).model
    n_weights = sum(p.nbytes for p in weights.parameters()) / 2**20
    assert abs(float(told["peak"].split("weights ")[1].split(" MiB")[0]) - n_weights) < 0.06
    table = text.split("\n\n")[1].splitlines()
    assert len(table) == 2 + 10
    assert all(repr(token) in table[5] for token in store.position_tokens)


@pytest.mark.slow
def test_a_device_map_gives_the_same_store(tiny_model, dataset, tmp_path):
    run(tiny_model("llama"), dataset, tmp_path / "plain.zarr")
    Extraction(
        str(tiny_model("llama")),
        dataset,
        tmp_path / "mapped.zarr",
        use_chat_template=True,
        batch_size=3,
        shard_samples=4,
        device_map="auto",
    ).run()
    assert tree(tmp_path / "mapped.zarr") == tree(tmp_path / "plain.zarr")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": []}, r"layers=\[\] is empty"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"layers": "9"}, f"has layers 0 to {N_BLOCKS}"),
        ({"dtype": "int8"}, "dtype='int8' cannot be stored"),
        ({"device": "cuda:7"}, "device='cuda:7' cannot be used"),
        ({"device_map": "somewhere"}, "device_map='somewhere' must be one of auto, balanced"),
        ({"device_map": "auto", "device": "cpu"}, "leave out device='cpu'"),
        ({"max_length": 10}, "longer than max_length=10"),
        ({"max_samples": 0}, "max_samples=0"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_samples": 2**64}, "must be less than 2"),
        ({"layers": [1, 1]}, "names a layer twice"),
        ({"layers": [N_BLOCKS, -1]}, f"names layer {N_BLOCKS} twice"),
        ({"label_column": []}, r"label_column=\[\] is empty"),
        ({"chat_template_kwargs": {"day": date(2024, 7, 26)}}, 'put the date in quotes: "2024-07-26"'),
        ({"chat_template_kwargs": {"a": {"b": {1, 2}}}}, "a.b is .1, 2., which JSON cannot represent"),
        ({"chat_template_kwargs": {"a": {1: 2}}}, "a has the key 1, which is not a string"),
    ],
)
def test_bad_arguments_are_refused_before_weights_are_loaded(
    options, message, tiny_model, dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(HiddenStates, "load", None)
    with pytest.raises(InputError, match=message) as caught:
        Extraction(
            str(tiny_model("llama")), dataset, tmp_path / "s.zarr", **{"use_chat_template": True, **options}
        ).run()
    assert str(caught.value.argument).split(".")[0] in options
    assert not (tmp_path / "s.zarr").exists()


def test_a_plan_is_what_the_store_will_be(tiny_model, dataset, tmp_path, monkeypatch):
    extraction = Extraction(str(tiny_model("llama")), dataset, tmp_path / "s.zarr", use_chat_template=True)
    with monkeypatch.context() as patched:
        patched.setattr(HiddenStates, "load", None)
        planned = extraction.plan()
        assert extraction.missing_nbytes() == planned.spec.layout.store_nbytes
    assert not list(tmp_path.glob("*s.zarr*"))
    store = extraction.run()
    assert extraction.missing_nbytes() == 0
    pd.testing.assert_frame_equal(planned.labels, store.labels)
    assert planned.questions == store.questions
    np.testing.assert_array_equal(planned.n_tokens, store.n_tokens)
    assert (planned.shape, planned.layers, planned.positions) == (store.shape, store.layers, store.positions)
    assert dict(planned.fingerprint) == dict(store.fingerprint)
    assert planned.nbytes == store[:].nbytes


def test_unknown_model_is_one_line(dataset, tmp_path):
    with pytest.raises(InputError, match="model 'no/such-model'") as caught:
        Extraction("no/such-model", dataset, tmp_path / "s.zarr", use_chat_template=True).run()
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="does not exist"):
        Extraction("nothing.gguf", dataset, tmp_path / "s.zarr", use_chat_template=True).run()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_finished_store_on_read_only_media_is_done(number, tiny_model, dataset, tmp_path, monkeypatch):
    extraction = Extraction(str(tiny_model("llama")), dataset, tmp_path / "s.zarr", use_chat_template=True, layers="1")
    extraction.run()
    opened = os.open

    def read_only(path, flags, *args, **kwargs):
        if str(path).startswith(str(tmp_path)) and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, flags, *args, **kwargs)

    before = tree(tmp_path / "s.zarr")
    monkeypatch.setattr(os, "open", read_only)
    assert replace(extraction, batch_size=2).run().n_committed == len(QUESTIONS)
    with pytest.raises(FingerprintMismatchError):
        replace(extraction, layers="2").run()
    with pytest.raises(OSError, match=os.strerror(number)):
        replace(extraction, repair=True).run()
    monkeypatch.undo()
    assert tree(tmp_path / "s.zarr") == before
