"""Corpus `tulu3`: the Tülu 3 SFT mixture (arXiv 2411.15124), 939,343 rows of 19 sources.

`jsonl.py` reads any rows; this corpus knows the number of rows, the licence and the domain of each source. The shards
are ordered by source, so the first rows of the files are of one source; take fractions instead. The rows come from the
hub, or from a local folder with the same Parquet shards.

    corpus=tulu3 corpus.domains=[math,code]
    corpus=tulu3 corpus.path=/data/tulu-3-sft-mixture
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.config.checks import check_choice, refuse
from harness.config.file_hash import file_sha256
from harness.config.hub import HubRepository, check_cached, fetch
from harness.data.corpora import CorpusSettings, Example, Size
from harness.data.corpora._files import count_rows, data_files, identity_of, read_rows
from harness.data.corpora._rows import bad_turns, count_or_refuse, plain_turns

REPOSITORY = "allenai/tulu-3-sft-mixture"
HUB_FILES = ("data/*.parquet",)
COLUMNS = ["id", "messages", "source"]
ROW_PER_RESPONSE = 1.5  # a guess for cost estimates: the public counter did not count prompts
UNREAD = " (from memory, not read)"


class PublishedSource(NamedTuple):
    """Published facts of one source; `response_tokens` is the total of one public token counter."""

    domain: str
    rows: int
    response_tokens: int
    license: str
    """As the data set's card states it; `UNREAD` marks licences that were not looked up for this table."""


# The domains follow the paper's table of skills; the data set's card has none.
SOURCES = {
    "ai2-adapt-dev/oasst1_converted": PublishedSource("general", 7131, 3180183, "Apache-2.0"),
    "ai2-adapt-dev/no_robots_converted": PublishedSource("general", 9500, 1816100, "CC-BY-NC-4.0"),
    "ai2-adapt-dev/tulu_v3.9_wildchat_100k": PublishedSource("general", 100000, 73997270, "ODC-BY-1.0"),
    "ai2-adapt-dev/tulu_hard_coded_repeated_10": PublishedSource("general", 240, 19200, "CC-BY-4.0" + UNREAD),
    "ai2-adapt-dev/flan_v2_converted": PublishedSource("knowledge", 89982, 3123074, "not given on the card"),
    "ai2-adapt-dev/tulu_v3.9_sciriff_10k": PublishedSource("knowledge", 10000, 1222976, "ODC-BY-1.0"),
    "ai2-adapt-dev/tulu_v3.9_table_gpt_5k": PublishedSource("knowledge", 5000, 418029, "MIT"),
    "ai2-adapt-dev/personahub_math_v5_regen_149960": PublishedSource("math", 149960, 169451962, "ODC-BY-1.0" + UNREAD),
    "ai2-adapt-dev/numinamath_tir_math_decontaminated": PublishedSource("math", 64312, 46831834, "Apache-2.0"),
    "ai2-adapt-dev/tulu_v3.9_open_math_2_gsm8k_50k": PublishedSource("math", 50000, 7583668, "not in the card's list"),
    "allenai/tulu-3-sft-personas-math-grade": PublishedSource("math", 49980, 17422957, "ODC-BY-1.0"),
    "ai2-adapt-dev/tulu_v3.9_personahub_math_interm_algebra_20k": PublishedSource(
        "math", 20000, 17535491, "ODC-BY-1.0"
    ),
    "ai2-adapt-dev/evol_codealpaca_heval_decontaminated": PublishedSource("code", 107276, 47335556, "Apache-2.0"),
    "ai2-adapt-dev/personahub_code_v2_34999": PublishedSource("code", 34999, 6084515, "ODC-BY-1.0" + UNREAD),
    "ai2-adapt-dev/tulu_v3.9_aya_100k": PublishedSource("multilingual", 100000, 34548041, "Apache-2.0" + UNREAD),
    "ai2-adapt-dev/personahub_ifdata_manual_seed_v3_29980": PublishedSource(
        "instruction_following", 29980, 10348199, "ODC-BY-1.0" + UNREAD
    ),
    "ai2-adapt-dev/tulu_v3.9_synthetic_finalresp_wildguardmixtrain_decontaminated_50k": PublishedSource(
        "safety", 50000, 4480471, "Apache-2.0"
    ),
    "ai2-adapt-dev/tulu_v3.9_wildjailbreak_decontaminated_50k": PublishedSource(
        "safety", 50000, 13313492, "ODC-BY-1.0"
    ),
    "ai2-adapt-dev/coconot_converted": PublishedSource("safety", 10983, 847113, "ODC-BY-1.0"),
}
DOMAINS = tuple(dict.fromkeys(source.domain for source in SOURCES.values()))


@dataclass
class Corpus(CorpusSettings):
    """The mixture, or the sources of it that `domains` and `sources` both name."""

    path: str | None = None
    """Local folder of the Parquet shards, known by their sha256; null reads the hub."""
    revision: str | None = None
    """Commit of the data set on the hub; null: resolve at first use and record what was found."""
    domains: list[str] | None = None
    """Keep only sources of these domains: general, knowledge, math, code, multilingual, instruction_following, safety;
    null keeps all."""
    max_length: int = 4096
    """Longest rendered row in tokens, as Tülu 3's recipe has it; longer rows are truncated and counted."""
    max_new_tokens: int = 2048
    """Length limit of generated text (teacher labels, student text, answers), in tokens: four times the mixture's mean
    answer of 489 tokens (ours)."""
    on_bad_row: str = "drop"
    """`drop` (leave bad rows out and count them; the default, because the hub's rows cannot be corrected) or `refuse`
    (stop at the first)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.domains or ():
            check_choice("corpus.domains", name, DOMAINS)
        for name in self.sources or ():
            check_choice("corpus.sources", name, tuple(SOURCES))
        if not self._kept():
            raise refuse(
                "corpus.sources",
                self.sources,
                f"none of them is of the domains {self.domains}",
                "leave one of the two filters out",
            )
        if self.path and self.revision:
            raise refuse(
                "corpus.revision",
                self.revision,
                "a local folder is known by its files",
                "set either corpus.path or corpus.revision",
            )

    @property
    def may_have_truth(self) -> bool:
        """The mixture has answers, and no column of truths."""
        return False

    def identity(self, world_seed: int) -> dict[str, Any]:
        """The sources kept, and the shards' sha256 (local) or the revision asked for (hub).

        Raises SettingsError where a local folder has no data, OSError where a shard cannot be read.
        """
        kept = self._kept()
        identity = identity_of(self, self._local_files() if self.path else [])
        # the sources kept say all that `domains` says; of files and revision one identifies the rows
        del identity["domains"], identity["revision" if self.path else "files"]
        identity.pop("answers", None)  # every row of this mixture is answered, so it changes none
        return {**identity, "sources": None if len(kept) == len(SOURCES) else sorted(kept)}

    def known_sources(self) -> tuple[str, ...]:
        """The sources that are kept."""
        return tuple(self._kept())

    def examples(self, world_seed: int) -> Iterator[Example]:
        """Yield the kept rows in the order of the shards, which are downloaded first where they are on the hub.

        Raises SettingsError where the hub does not answer, and for a bad row where bad rows are refused.
        """
        self.dropped: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self.found_revision: str | None = None
        if self.path:
            files = self._local_files()
        else:
            files, self.found_revision = self._hub_files()
        self.read_from = [file_sha256(file) for file in files]
        everything, kept = len(self._kept()) == len(SOURCES), frozenset(self._kept())
        for number, row in enumerate(read_rows(files, COLUMNS), start=1):
            values = row.values or {}
            source = str(values.get("source"))
            # an unreadable row has no source and is judged below, whatever is kept
            if values and not everything and source not in kept:
                continue
            self.read[source] += 1
            problem = row.problem or bad_turns(values.get("messages"))
            if problem:
                count_or_refuse(self.on_bad_row, self.dropped, row.where, problem)
                continue
            yield Example(
                id=str(values.get("id") or f"{source}-{number}"),
                source=source,
                messages=plain_turns(values["messages"]),
            )

    def provenance(self) -> dict[str, Any]:
        """After `examples` was exhausted: revision, files, licences, dropped rows, differences from the publication."""
        licenses = {name: SOURCES[name].license for name in self.read if name in SOURCES}
        return {
            "revision": self.found_revision,
            "files": self.read_from,
            "dropped": dict(self.dropped),
            "licenses": licenses,
            "warnings": [*_license_warnings(licenses), *self._count_warnings()],
        }

    def size(self, family: str = "words") -> Size | None:
        """Published row counts and token totals of the kept sources; a smaller local copy in proportion."""
        kept = [SOURCES[name] for name in self._kept()]
        rows = sum(source.rows for source in kept)
        mean = sum(source.response_tokens for source in kept) / rows
        if self.path:
            whole = sum(source.rows for source in SOURCES.values())
            # a local copy may be a sample: its rows are taken to have the sources in the published shares
            rows = round(count_rows(self._local_files()) * rows / whole)
        return Size(max(1, rows - self.heldout_rows), mean, mean * ROW_PER_RESPONSE, self.heldout_rows)

    def check(self) -> None:
        """Raise SettingsError for a folder without the shards or their columns, and where the hub is out of reach."""
        if not self.path:
            # without network the shards must be in the cache already; with it, they are fetched when the stage runs
            check_cached(self._repository(), HUB_FILES)
            return
        first = next((row.values for row in read_rows(self._local_files()) if row.values), {})
        absent = [name for name in COLUMNS if name not in first]
        if absent:
            raise refuse(
                "corpus.path",
                self.path,
                f"a shard of this mixture has {', '.join(COLUMNS)}, and {', '.join(absent)} is not there",
                "for other rows use corpus=jsonl",
            )

    def _kept(self) -> list[str]:
        return [
            name
            for name, source in SOURCES.items()
            if (self.sources is None or name in self.sources)
            and (self.domains is None or source.domain in self.domains)
        ]

    def _local_files(self) -> list[Path]:
        folder = Path(str(self.path)).expanduser()
        return data_files("corpus.path", folder / "data" if (folder / "data").is_dir() else folder)

    def _repository(self) -> HubRepository:
        instead = "set corpus.path to a local folder of its shards"
        return HubRepository(REPOSITORY, "corpus", "corpus.revision", self.revision, "dataset", instead)

    def _hub_files(self) -> tuple[list[Path], str]:
        """The shards in the hub's cache, downloaded where absent, and their commit."""
        folder = fetch(self._repository(), HUB_FILES)
        return data_files("corpus.revision", folder / "data"), folder.name  # the cache names the folder by the commit

    def _count_warnings(self) -> list[str]:
        expected = {name: SOURCES[name].rows for name in self._kept()}
        names = sorted(set(self.read) | set(expected))
        differing = [
            f"{name} {self.read[name]} (published: {expected.get(name, 0)})"
            for name in names
            if self.read[name] != expected.get(name, 0)
        ]
        return [f"rows differ from the published mixture: {', '.join(differing)}"] if differing else []


def _license_warnings(licenses: dict[str, str]) -> list[str]:
    closed = sorted(name for name, license in licenses.items() if "-NC-" in license)
    unclear = sorted(name for name, license in licenses.items() if license.startswith("not "))
    found = [f"not for commercial use: {', '.join(closed)}; leave them out with corpus.sources"] if closed else []
    if unclear:
        names = ", ".join(unclear)
        found.append(f"no licence on the card: {names}; ask the publisher of these sources before you share a model")
    return found
