import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.config.checks import SettingsError
from harness.data.corpora.tulu3 import DOMAINS, REPOSITORY, SOURCES, Corpus
from tests.fake_hub import FakeHub, Repository, point_at

DATA = Path(os.environ.get("HARNESS_TEST_DATA") or Path(__file__).parents[3].parent / "shared" / "data")
HARD_CODED = "ai2-adapt-dev/tulu_hard_coded_repeated_10"
NO_ROBOTS = "ai2-adapt-dev/no_robots_converted"


def write_shards(folder: Path, scale: int = 500) -> Path:
    """A small copy with the profile of the mixture: ordered by source, the hard-coded rows ten times each."""
    rows = []
    for name, source in SOURCES.items():
        distinct = 24 if name == HARD_CODED else max(2, source.rows // scale)
        for number in range(240 if name == HARD_CODED else distinct):
            text = f"{name} {number % distinct}"
            rows.append(
                {
                    "id": f"{name}_{number}",
                    "source": name,
                    "messages": [{"content": f"Say {text}", "role": "user"}, {"content": text, "role": "assistant"}],
                }
            )
    (folder / "data").mkdir(parents=True)
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        pq.write_table(pa.Table.from_pylist(part), folder / "data" / f"train-0000{number}-of-00002.parquet")
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("tulu3"))


def test_the_table_of_sources_is_the_published_one():
    if not (DATA / "tulu3_sources.json").is_file():
        pytest.skip(f"no published table in {DATA}")
    published = json.loads((DATA / "tulu3_sources.json").read_text())
    assert sum(source.rows for source in SOURCES.values()) == published["rows"] == 939_343
    table = {row["source"]: row for row in published["sources"]}
    assert set(table) == set(SOURCES)
    for name, source in SOURCES.items():
        assert source.rows == table[name]["rows"]
        assert source.response_tokens == table[name]["assistant_tokens_seen_by_one_counter"]
        assert ("from memory" in source.license) == ("from memory" in table[name]["license_on_card"])
        assert source.license.split(" ")[0] == table[name]["license_on_card"].split(" ")[0]


def test_genuine_rows_of_the_mixture_are_read(tmp_path):
    if not (DATA / "tulu3_real_rows.jsonl").is_file():
        pytest.skip(f"no genuine rows in {DATA}")
    lines = [json.loads(line) for line in (DATA / "tulu3_real_rows.jsonl").read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "train-00000-of-00001.parquet")
    corpus = Corpus(path=str(tmp_path))
    corpus.check()
    rows = list(corpus.examples(0))
    assert [row.id for row in rows] == [line["id"] for line in lines]
    assert [row.messages for row in rows] == [line["messages"] for line in lines]


def test_all_sources_are_read_in_the_order_of_the_shards_with_their_licences(shards):
    corpus = Corpus(path=str(shards))
    corpus.check()
    rows = list(corpus.examples(0))
    assert list(dict.fromkeys(row.source for row in rows)) == list(SOURCES)
    found = corpus.provenance()
    assert found["licenses"][NO_ROBOTS] == "CC-BY-NC-4.0"
    assert set(found["licenses"]) == set(SOURCES)
    assert any("not for commercial use" in said and NO_ROBOTS in said for said in found["warnings"])
    assert any(
        "rows differ from the published mixture" in said and HARD_CODED not in said for said in found["warnings"]
    )


def test_a_domain_keeps_its_sources_and_has_the_identity_of_them(shards):
    corpus = Corpus(path=str(shards), domains=["safety"])
    kept = {row.source for row in corpus.examples(0)}
    assert kept == {name for name, source in SOURCES.items() if source.domain == "safety"}
    assert len(kept) == 3
    by_name = Corpus(path=str(shards), sources=sorted(kept, reverse=True))
    assert by_name.identity(0) == corpus.identity(0) != Corpus(path=str(shards)).identity(0)
    assert Corpus(path=str(shards), domains=list(DOMAINS)).identity(0) == Corpus(path=str(shards)).identity(0)
    assert Corpus(path=str(shards), answers="none").identity(0) == Corpus(path=str(shards)).identity(0)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"domains": ["maths"]}, "allowed are general, knowledge, math"),
        ({"sources": ["no_robots"]}, "ai2-adapt-dev/no_robots_converted"),
        ({"sources": [NO_ROBOTS], "domains": ["math"]}, "none of them is of the domains"),
        ({"path": "x", "revision": "y"}, "a local folder is known by its files"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_allowed(settings, said):
    with pytest.raises(SettingsError, match=said):
        Corpus(**settings)


def test_shards_of_another_data_set_are_refused(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "rows.parquet")
    with pytest.raises(SettingsError, match="messages, source is not there; for other rows use corpus=jsonl"):
        Corpus(path=str(tmp_path)).check()


def test_the_expected_size_needs_no_data_and_knows_the_filters():
    whole, math = Corpus().size(), Corpus(domains=["math"]).size()
    assert whole and math
    assert whole.rows == 939_343 - 1000
    assert math.rows == 149_960 + 64_312 + 50_000 + 49_980 + 20_000 - 1000
    assert math.response_tokens == pytest.approx(258_825_952 / 334_252)


def test_the_hub_is_read_at_one_commit_which_is_recorded(shards, tmp_path, monkeypatch):
    import huggingface_hub

    snapshot = tmp_path / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot / "data").symlink_to(shards / "data")
    asked = []

    def snapshot_download(repository, repo_type, revision, allow_patterns):
        asked.append((repository, repo_type, revision, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    corpus = Corpus()
    assert corpus.identity(0)["revision"] is None and "files" not in corpus.identity(0)
    assert next(corpus.examples(0)).source == "ai2-adapt-dev/oasst1_converted"
    assert asked == [(REPOSITORY, "dataset", None, ["data/*.parquet"])]
    assert corpus.provenance()["revision"] == "0123abc"


def test_a_hub_out_of_reach_is_refused_with_the_way_out(monkeypatch, tmp_path):
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path)
    with pytest.raises(
        SettingsError, match=r"cannot be reached .*, or set corpus\.path to a local folder of its shards"
    ):
        next(Corpus().examples(0))
    Corpus().check()  # nothing is looked up online before the run
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path, offline=True)
    with pytest.raises(SettingsError, match=r"^corpus='allenai/tulu-3-sft-mixture' .*HF_HUB_OFFLINE is set"):
        Corpus().check()


def test_a_revision_that_the_hub_does_not_have_is_refused_by_its_setting(monkeypatch, tmp_path):
    with FakeHub({REPOSITORY: Repository(tmp_path)}) as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        with pytest.raises(SettingsError, match=r"^corpus\.revision='v9' .*has no such revision.*/datasets/allenai/"):
            next(Corpus(revision="v9").examples(0))
