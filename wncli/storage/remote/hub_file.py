"""A file of a repository on the hub: read by ranges, or downloaded into the shared cache."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from wncli.storage.remote.hub_settings import HubSettings
from wncli.storage.remote.repository import Repository
from wncli.storage.remote.web_file import WebFile


class HubFile(WebFile):
    """A file of the hub: `place` is the repository, at the commit once that is known."""

    settings: HubSettings
    place: Repository

    def download(self) -> Path | None:
        """Have huggingface_hub put it into its cache; None where it is not installed, or fails."""
        if not find_spec("huggingface_hub"):
            return None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import tqdm

        class Silent(tqdm):  # type: ignore[misc]  # its bars are drawn on stderr
            def __init__(self, *args: object, **keywords: object) -> None:
                super().__init__(*args, **{**keywords, "disable": True})

        place = self.place
        try:
            found = hf_hub_download(
                place.id,
                place.path,
                repo_type=place.kind.removesuffix("s"),
                revision=place.revision,
                cache_dir=self.settings.cache,
                endpoint=self.settings.endpoint,
                token=self.settings.token or False,
                library_name="wncli",
                tqdm_class=Silent,
            )
        except Exception:  # noqa: BLE001 - whatever it is, parts of the file can be read
            return None
        if self.version:
            self.web.meter.count(requests=1, nbytes=self.version.nbytes)
        return Path(found)
