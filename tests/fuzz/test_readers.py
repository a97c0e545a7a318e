"""A short campaign; the long one is ``make fuzz``."""

from tests.fuzz.campaign import campaign
from tests.fuzz.readers import readers


def test_every_reader_returns_or_refuses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    found = {
        reader.name: campaign(reader, max(3, int(30 * reader.share)))
        for reader in readers(tmp_path)
    }
    told = [
        f"{name}: {where}\n{trace}\n{drawn!r:.2000}"
        for name, of in found.items()
        for where, (trace, drawn) in of.findings.items()
    ]
    assert not told, "\n".join(told)
    assert all(of.counts.total() > 2 for of in found.values())
