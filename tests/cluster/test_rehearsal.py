"""A paper experiment with stand-ins on a real Slurm, from the command to its report."""

from harness.rehearsal import main


def test_a_rehearsal_is_sent_to_the_cluster_and_reported(cluster, tmp_path, stand_ins, capsys):
    (tmp_path / "rehearsal").mkdir()
    (tmp_path / "rehearsal" / stand_ins.name).symlink_to(stand_ins)
    small = ["evals.names=[heldout]", "primary_metric=null", "measure.formats=[]", "slurm=dev", "wait=true"]
    assert main(["controls", "--store", str(tmp_path), *small]) == 0
    shown = capsys.readouterr().out
    assert "ran to the end" in shown
    assert "rehearsal: numbers mean nothing" in (tmp_path / "reports" / "controls_rehearsal" / "report.md").read_text()
