"""Push and pull with the hub's real client and a hub on this machine: what comes back is what was sent, or nothing."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from activation_store import ActivationStore, MissingShardError
from activation_store.pt.convert import export_pt, import_pt
from gpu_probes import ProbeError
from probesweep import Probe, RequestError
from probesweep.sharing.parcels import pack
from probesweep.sharing.push_pull import pull, push
from tests.helpers.commands import run
from tests.helpers.hub import Repo
from tests.helpers.models import QUESTIONS
from tests.helpers.stores import make_spec, make_values, tree, write_store

pytestmark = pytest.mark.slow

STATES = ("dataset", "me/states")
PROBES = ("model", "me/probes")


def without_lock(store: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(store).items() if not name.endswith("writer.lock")}


def front_matter(card: bytes) -> dict:
    return yaml.safe_load(card.decode().split("---")[1])


@pytest.fixture
def store(trained, tmp_path) -> Path:
    return shutil.copytree(trained / "train.zarr", tmp_path / "train.zarr")


@pytest.fixture
def results(trained, tmp_path) -> Path:
    return shutil.copytree(trained / "results", tmp_path / "results")


def test_a_store_comes_back_byte_for_byte(store, tmp_path, hub):
    (store / "activations/c/0/0/0/.0.partial").write_bytes(b"of a run that was killed")
    (store / "notes").write_text("mine")
    done = run("push", store, "me/states")
    assert done.returncode == 0, done.stderr
    assert "33 samples" in done.stdout
    assert "private, shows 33 prompts, label column success_rate" in done.stdout
    repo = hub.repos[STATES]
    assert repo.private
    assert len(repo.messages) == 2  # the hub's own, and one push
    (store / "activations/c/0/0/0/.0.partial").unlink()
    (store / "notes").unlink()
    assert set(repo.files()) == {*without_lock(store), "README.md", ".gitattributes"}
    done = run("pull", "me/states", tmp_path / "new/states.zarr")
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "new/states.zarr") == without_lock(store)
    assert ActivationStore.open(tmp_path / "new/states.zarr").verify() == []
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["states.zarr"]
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_symlink()]


def test_names_with_spaces_and_all_data_types(tmp_path, hub):
    for dtype in ("float16", "bfloat16"):
        spec = make_spec(dtype=dtype)
        write_store(tmp_path / f"{dtype}.zarr", spec, make_values(spec), finish=True)
        push(tmp_path / f"{dtype}.zarr", f"me/{dtype}")
        pull(f"me/{dtype}", tmp_path / f"{dtype}-taken.zarr")
        assert tree(tmp_path / f"{dtype}-taken.zarr") == without_lock(tmp_path / f"{dtype}.zarr")


def test_probes_come_back_and_work(results, tmp_path, hub):
    (results / "report.html").write_text("<p>prompts</p>")
    (results / "tracked.json").write_text("{}")
    (results / "wandb").mkdir()
    (results / "wandb/wandb-metadata.json").write_text('{"host": "mine"}')
    assert "probes of" in push(results, "me/probes", public=True)
    assert not hub.repos[PROBES].private
    named = {*json.loads((results / "run.json").read_text())["files"], "run.json"}
    assert set(hub.repos[PROBES].files()) == {*named, "README.md", ".gitattributes"}
    pull("me/probes", tmp_path / "probes")
    assert (Probe.load(tmp_path / "probes").coef == Probe.load(results).coef).all()
    assert tree(tmp_path / "probes") == {name: (results / name).read_bytes() for name in named}


def test_several_trainings_in_one_folder(results, tmp_path, hub):
    for label in ("a", "b"):
        shutil.copytree(results, tmp_path / "both" / label)
    push(tmp_path / "both", "me/probes")
    pull("me/probes", tmp_path / "taken")
    assert tree(tmp_path / "taken") == tree(tmp_path / "both")


def test_the_card_of_an_imported_store_claims_no_prompts_and_no_tokens(store, tmp_path):
    export_pt(ActivationStore.open(store), tmp_path / "s.pt")
    import_pt(tmp_path / "s.pt", tmp_path / "imported.zarr")
    card = pack(tmp_path / "imported.zarr").card
    assert "| prompts | not in the store |" in card
    assert '""' not in card


def test_cards_say_what_it_is_without_a_licence(store, results, hub):
    push(store, "me/states")
    card = hub.repos[STATES].files()["README.md"]
    assert front_matter(card) == {"library_name": "probesweep", "tags": ["probesweep", "zarr", "hidden-states"]}
    fingerprint = ActivationStore.open(store).fingerprint
    for text in ("33 samples", "| 0, 1 |", "`-1 ", "`success_rate`", fingerprint["weights"], fingerprint["dataset"]):
        assert text in card.decode()
    push(results, "me/probes")
    card = hub.repos[PROBES].files()["README.md"]
    assert front_matter(card)["tags"] == ["probesweep", "linear-probe", "hidden-states"]
    found = json.loads((results / "inference.json").read_text())
    scores = json.loads((results / "probe.json").read_text())["scores"]
    content = json.loads((results / "run.json").read_text())["request"]["train"]["content"]
    for text in (f"{scores['cv']:.4g}", f"{found['nested_cv']['score']:.4g}, 95 % interval", content, "`success_rate`"):
        assert text in card.decode()
    # Layer 0 has no score: it is left out.
    assert "baseline layer_0" not in card.decode()
    assert not [question for question in QUESTIONS if len(question) > 3 and question in card.decode()]


def test_a_second_push_replaces_and_keeps_the_card_and_what_is_not_ours(store, trained, tmp_path, hub):
    push(store, "me/states", message="first")
    files = hub.repos[STATES].files()
    files |= {"README.md": b"mine", "LICENSE": b"mine", "figures/a.png": b"mine"}
    push(trained / "test.zarr", "me/states")
    assert hub.repos[STATES].messages[1:] == ["first", hub.repos[STATES].messages[2]]
    after = hub.repos[STATES].files()
    assert {name: after[name] for name in ("README.md", "LICENSE", "figures/a.png")} == {
        "README.md": b"mine", "LICENSE": b"mine", "figures/a.png": b"mine"
    }  # fmt: skip
    assert "activations/c/3/0/0/0" in files
    assert "activations/c/3/0/0/0" not in after
    pull("me/states", tmp_path / "s.zarr")
    assert tree(tmp_path / "s.zarr") == without_lock(trained / "test.zarr")


def test_the_same_push_again_adds_no_commit(store, hub):
    for _ in range(2):
        push(store, "me/states")
    assert len(hub.repos[STATES].messages) == 2


def test_a_model_that_is_there_keeps_its_own_files(trained, results, tmp_path, hub):
    theirs = {"config.json": b"{}", "model.safetensors": b"weights", "sub/run.json": b"[]"}
    hub.repos[PROBES] = Repo(private=True)
    hub.repos[PROBES].commit("main", theirs, "a model")
    push(results, "me/probes")
    assert "probe.json" in hub.repos[PROBES].files()
    # Folds of one sample leave all CV scores undefined: a training without a best probe has fewer files.
    done = run(
        "train", "--train_activations", trained / "train.zarr", "--test_activations", trained / "test.zarr",
        "--output_dir", tmp_path / "without_best", "--k_fold", "--n_folds", 33,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    push(tmp_path / "without_best", "me/probes")
    after = hub.repos[PROBES].files()
    assert not {"probe.json", "best_probe_predictions.json"} & after.keys()
    assert theirs.items() <= after.items()


def test_a_branch_is_made_and_read(store, tmp_path, hub):
    push(store, "me/states", revision="second/try")
    assert "zarr.json" not in hub.repos[STATES].files("main")
    with pytest.raises(RequestError, match="neither a store nor probes"):
        pull("me/states", tmp_path / "s.zarr")
    with pytest.raises(RequestError, match="no branch, tag or commit 'third'"):
        pull("me/states", tmp_path / "s.zarr", revision="third")
    pull("me/states", tmp_path / "s.zarr", revision="second/try")
    assert tree(tmp_path / "s.zarr") == without_lock(store)
    commit = hub.repos[STATES].branches["second/try"]
    pull("me/states", tmp_path / "t.zarr", revision=commit)
    assert tree(tmp_path / "t.zarr") == without_lock(store)


def test_prompts_do_not_become_public_unasked(store, hub):
    hub.repos[STATES] = Repo(private=False)
    hub.repos[STATES].commit("main", {}, "initial commit")
    said: list[str] = []
    with pytest.raises(RequestError, match=r"me/states is public: everyone would see 33 prompts.*Give public=True"):
        push(store, "me/states", announce=said.append)
    assert (hub.repos[STATES].files(), said) == ({}, [])
    push(store, "me/states", public=True, announce=said.append)
    assert said == ["me/states: public, shows 33 prompts, label column success_rate, the paths of model and dataset"]
    assert "zarr.json" in hub.repos[STATES].files()


def test_what_is_not_whole_is_not_sent(trained, store, results, tmp_path, hub):
    shard = store / "activations/c/0/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-9] + b"damaged!!")
    with pytest.raises(RequestError, match="is damaged"):
        push(store, "me/states")
    shutil.copytree(trained / "train.zarr", tmp_path / "unfinished.zarr")
    for name in ("finished", "0"):
        (tmp_path / "unfinished.zarr/activations/journal" / name).unlink()
    with pytest.raises(MissingShardError, match="committed"):
        push(tmp_path / "unfinished.zarr", "me/states")
    run_json = (results / "run.json").read_bytes()
    (results / "run.json").write_bytes(
        run_json.replace(b'"files": {', b'"files": {"../secret.json": "%s",' % (b"0" * 64))
    )
    with pytest.raises(ProbeError, match="names a file that is not next to it"):
        push(results, "me/probes")
    (results / "run.json").write_bytes(run_json)
    predictions = (results / "all_predictions.json").read_bytes()
    (results / "all_predictions.json").write_bytes(predictions.replace(b"1", b"2"))
    with pytest.raises(ProbeError, match=r"all_predictions.json does not match run.json"):
        push(results, "me/probes")
    (results / "all_predictions.json").unlink()
    with pytest.raises(ProbeError, match=r"all_predictions.json: it is missing, and run.json names it"):
        push(results, "me/probes")
    assert run("push", tmp_path / "nothing", "me/nothing").returncode == 2
    assert hub.requests == []


def test_what_the_hub_leaves_out_is_noticed(store, hub):
    hub.ignored = {"question/c/0"}
    with pytest.raises(RequestError, match=r"left out question/c/0; does its .gitignore"):
        push(store, "me/states")


def harmed(content: bytes) -> dict[str, bytes | None]:
    return {"missing": None, "cut": content[: len(content) // 2], "flipped": bytes([content[0] ^ 1]) + content[1:]}


def test_a_store_that_is_not_whole_is_not_taken(store, tmp_path, hub):
    push(store, "me/states")
    whole = hub.repos[STATES].files()
    for name in ("activations/c/1/0/0/0", "question/c/0", "activations/journal/finished", "zarr.json"):
        for content in harmed(whole[name]).values():
            hold(hub.repos[STATES], {**whole, name: content})
            with pytest.raises(RequestError, match=r"me/states (was not downloaded|holds neither)"):
                pull("me/states", tmp_path / "s.zarr")
            assert not [path for path in tmp_path.iterdir() if path.name in ("s.zarr", ".s.zarr.partial")]


def hold(repo: Repo, contents: dict[str, bytes | None]) -> None:
    repo.commit("main", {name: content for name, content in contents.items() if content is not None}, "harm")


NOT_PROBES = [
    ("probes.safetensors", b"\x80pickled"),
    ("cells.parquet", b"PAR1"),
    ("performance.json", b"{}"),
    ("performance.json", None),
    ("inference.json", b"[]"),
    ("run.json", b"[]"),
    ("run.json", b"{"),
    ("run.json", b'{"request": {}, "files": {}, "label": "a"}'),
]


def signed(files: dict[str, bytes], changed: dict[str, bytes], **more: str) -> dict[str, bytes | None]:
    """Files as a stranger would push them: changed, and with a run.json that goes with them."""
    run_json = json.loads(files["run.json"])
    run_json["files"] |= {name: hashlib.sha256(content).hexdigest() for name, content in changed.items()} | more
    return {**files, **changed, "run.json": json.dumps(run_json).encode()}


def test_probes_that_are_not_whole_are_not_taken(results, tmp_path, hub):
    push(results, "me/probes")
    whole = hub.repos[PROBES].files()
    deep = b"[" * 200_000
    for contents in (
        *({**whole, name: content} for name, content in NOT_PROBES),
        *(signed(whole, {name: b"{}"}) for name in ("performance.json", "inference.json", "probe.json")),
        signed(whole, {"best_probe_predictions.json": deep}),
        signed(whole, {"probes.safetensors": b"\x80pickled"}),
        signed(whole, {}, **{"../../x.json": "0"}),
        signed(whole, {"evil.pkl": b"\x80pickled"}),
    ):
        hold(hub.repos[PROBES], contents)
        with pytest.raises(RequestError, match="me/probes was not downloaded"):
            pull("me/probes", tmp_path / "taken/probes")
        assert list((tmp_path / "taken").iterdir()) == []


def test_bytes_that_the_hub_does_not_list_are_not_taken(results, tmp_path, hub, monkeypatch):
    """A value of all_predictions.json that changed on the way: no reader would notice."""
    push(results, "me/probes")
    files = hub.repos[PROBES].files()
    listed = hub.listing(files)
    changed = files["all_predictions.json"].replace(b"1", b"2")
    hold(hub.repos[PROBES], signed(files, {"all_predictions.json": changed}))
    monkeypatch.setattr(hub, "listing", lambda _: listed)
    with pytest.raises(RequestError, match=r"all_predictions.json is not what the hub lists"):
        pull("me/probes", tmp_path / "probes")
    assert not (tmp_path / "probes").exists()


def test_only_files_of_the_formats_are_taken(store, results, tmp_path, hub):
    push(results, "me/probes")
    push(store, "me/states")
    for key in (STATES, PROBES):
        for name in ("evil.pkl", "pytorch_model.bin", "run.py", "config.json", "x/c/0", "x/y/zarr.json", "a/.b.json"):
            hub.repos[key].files()[name] = b"\x80"
    pull("me/probes", tmp_path / "probes")
    pull("me/states", tmp_path / "s.zarr")
    assert set(tree(tmp_path / "probes")) == {*json.loads((results / "run.json").read_text())["files"], "run.json"}
    assert tree(tmp_path / "s.zarr") == without_lock(store)
    assert {path.name for path in (tmp_path / "s.zarr").iterdir()} == {path.name for path in store.iterdir()}
    assert not [line for line in hub.requests if line.endswith(("evil.pkl", ".bin", ".py"))]


def test_a_download_that_broke_off_is_taken_up(store, tmp_path, hub):
    push(store, "me/states")
    commit = hub.repos[STATES].branches["main"]
    broken = f"GET /datasets/me/states/resolve/{commit}/activations/c/3"
    hub.fail = {broken: (403, {})}
    target = tmp_path / "taken/s.zarr"
    with pytest.raises(
        RequestError, match=r"what was downloaded so far is in .*\.s\.zarr\.partial, and the same command"
    ):
        pull("me/states", target)
    assert not target.exists()
    came = {file for file in tree(tmp_path / "taken/.s.zarr.partial") if not file.startswith(".cache")}
    assert came
    hub.fail, hub.requests = {}, []
    pull("me/states", target)
    assert tree(target) == without_lock(store)
    fetched = {line.split(f"{commit}/")[1] for line in hub.requests if line.startswith("GET /datasets")}
    assert fetched == set(without_lock(store)) - came


def test_a_folder_that_is_there_is_left_alone(results, tmp_path, hub):
    push(results, "me/probes")
    hub.requests = []
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("mine", "link"):
        done = run("pull", "me/probes", tmp_path / name)
        assert done.returncode == 2
        assert "already exists" in done.stderr
    assert hub.requests == []


def test_a_dataset_of_the_same_name_does_not_hide_probes(results, tmp_path, hub):
    hub.repos["dataset", "me/probes"] = Repo(private=False)
    hub.repos["dataset", "me/probes"].commit("main", {"data.csv": b"1"}, "a table")
    push(results, "me/probes")
    pull("me/probes", tmp_path / "probes")
    assert tree(tmp_path / "probes") == {name: (results / name).read_bytes() for name in tree(tmp_path / "probes")}


def fails_in_one_line(match: str, *command: object) -> None:
    done = run(*command, "--quiet")
    assert done.returncode == 2
    assert match in done.stderr
    assert done.stderr.count("\n") == 1


def test_errors_of_the_hub_are_one_line(results, tmp_path, hub, monkeypatch):
    target = tmp_path / "x"
    fails_in_one_line("the hub has no visible dataset or model me/none", "pull", "me/none", target)
    for command in (("push", results, "a/b/c"), ("pull", "a/b/c", target)):
        fails_in_one_line("'a/b/c' is not a repository name; write it as NAME/REPOSITORY", *command)
    hub.fail = {"POST /api/models/me/probes/commit": (403, {})}
    fails_in_one_line("the hub refused access to me/probes (403)", "push", results, "me/probes")
    hub.fail = {}
    push(results, "me/probes")
    hub.fail = {"GET /api/": (418, {})}
    fails_in_one_line("the hub answered 418 for me/probes: made to fail; try again later", "pull", "me/probes", target)
    hub.fail = {"GET /api/models": (403, {"X-Error-Code": "GatedRepo"})}
    fails_in_one_line("is gated: request access", "pull", "me/probes", target)
    hub.fail = {}
    monkeypatch.delenv("HF_TOKEN")
    fails_in_one_line("(401); give `hf auth login`", "push", results, "me/other")
    fails_in_one_line("if it is private run `hf auth login` (or set HF_TOKEN)", "pull", "me/probes", target)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for command in (("push", results, "me/probes"), ("pull", "me/probes", target)):
        fails_in_one_line("HF_HUB_OFFLINE is set, so the hub cannot be used; unset it", *command)
    assert not target.exists()


def test_no_network(results, tmp_path, hub):
    hub.close()
    for command in (("push", results, "me/x"), ("pull", "me/x", tmp_path / "x")):
        fails_in_one_line("check network and disk", *command)
