"""Token files that the tests of chunks, batches and masks share."""

from __future__ import annotations

import pytest
from data_corpora import prepared, random_documents

from ipu_bert.data.token_files import TokenFiles


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> TokenFiles:
    """120 documents of made-up words; to be read only."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return prepared(monkeypatch, tmp_path_factory.mktemp("batches"), random_documents(7, 120))
