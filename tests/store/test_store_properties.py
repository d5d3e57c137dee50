"""Any sequence of publications, claims, damages, repairs, gc and fsck keeps a store's promises."""

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from harness.config import file_hash
from harness.execution.garbage import garbage
from harness.plan.frozen import FrozenPlan, keep_plan
from harness.store.fsck import findings, remove
from harness.store.integrity import InputError, check_inputs, damage
from harness.store.store import Store
from tests.invented_records import frozen_cell

KEYS = [f"train-{digit * 32}" for digit in "abc"]
keys = st.sampled_from(KEYS)


class StoreMachine(RuleBasedStateMachine):
    """A store, and beside it what it should hold: by key the bytes that were published, and what was damaged since."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.store = Store.open(Path(self.folder) / "store")
        self.content: dict[str, bytes] = {}
        self.damaged: set[str] = set()
        self.leases = {}
        self.planned: set[str] = set()
        self.aside = 0

    def teardown(self):
        shutil.rmtree(self.folder)

    @rule(key=keys, content=st.binary(min_size=1, max_size=8))
    def publish(self, key, content):
        headless = self.store.folder(key).exists() and not self.store.done(key)
        was_done = self.store.done(key)
        with self.store.scratch(key) as out:
            (out / "weights").write_bytes(content)
            self.store.publish(key, out, {"facts": {}, "inputs": {}})
        if not was_done:  # the first stays
            self.content[key] = content
            self.damaged.discard(key)
            self.aside += headless

    @rule(key=keys)
    def claim(self, key):
        lease = self.store.claim(key)
        assert (lease is None) == (key in self.leases)
        if lease is not None:
            self.leases[key] = lease

    @rule(key=keys)
    def release(self, key):
        if key in self.leases:
            self.leases.pop(key).release()

    @rule(key=keys, how=st.sampled_from(["flip", "cut", "delete", "manifest cut", "manifest emptied", "manifest gone"]))
    def spoil(self, key, how):
        if key not in self.content or key in self.damaged:
            return
        weights, manifest = (self.store.folder(key) / name for name in ("weights", "manifest.json"))
        if how == "flip":
            times = weights.stat()
            weights.write_bytes(bytes(byte ^ 1 for byte in weights.read_bytes()))
            os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
        elif how == "cut":
            os.truncate(weights, 0)
        elif how == "manifest cut":
            os.truncate(manifest, 9)
        elif how == "manifest emptied":
            os.truncate(manifest, 0)
        else:
            (weights if how == "delete" else manifest).unlink()
        file_hash._contents.clear()  # as another process would look
        self.damaged.add(key)

    @rule(key=keys)
    def use(self, key):
        spec = {"address": "user", "inputs": {"start": key}}
        try:
            check_inputs(self.store, spec)
        except InputError:
            assert key not in self.content or key in self.damaged
            self._gone(key)
        else:
            assert key in self.content and key not in self.damaged

    @rule()
    def repair(self):
        for finding in [one for one in findings(self.store) if one.part == "objects"]:
            finding.mend()
        for key in list(self.damaged):
            self._gone(key)
        assert [one for one in findings(self.store) if one.part == "objects"] == []

    @rule(some=st.sets(keys))
    def plan(self, some):
        specs = {key: {"key": key, "inputs": {}, "address": key, "kind": "train", "settings": {}} for key in some}
        names = {"method": "sft", "data_frac": 0.1, "student": "mini", "seed": 0}
        keep_plan(self.store, FrozenPlan("g", specs, (frozen_cell(**names, needs=tuple(some), evaluations={}),)))
        self.planned = set(some)

    @rule()
    def gc(self):
        found = garbage(self.store)
        for path in found.artifacts + found.leftovers:
            remove(self.store, path)
        for key in set(self.content) - self.planned - set(self.leases):
            if not self.store.folder(key).exists():
                self.content.pop(key)
                self.damaged.discard(key)

    def _gone(self, key):
        if key in self.damaged:
            self.aside += 1
            self.content.pop(key)
            self.damaged.discard(key)

    @invariant()
    def what_is_whole_is_what_was_published_and_nothing_else_is_done(self):
        for key in KEYS:
            if key in self.content and key not in self.damaged:
                assert (self.store.folder(key) / "weights").read_bytes() == self.content[key]
                assert damage(self.store, key) is None and self.store.done(key)
            elif key in self.damaged:
                assert damage(self.store, key) is not None
            else:
                assert not self.store.folder(key).exists()

    @invariant()
    def what_was_set_aside_is_never_lost(self):
        folders = [path for path in (self.store.root / "quarantine").glob("*") if path.is_dir()]
        assert len(folders) == len(self.store.quarantine()) == self.aside

    @invariant()
    def live_claims_hold_and_no_scratch_is_left(self):
        assert {key for key in KEYS if self.store.claimed(key)} == set(self.leases)
        assert not any((self.store.root / "tmp").iterdir())


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
