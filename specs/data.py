"""External data: preference pairs, HH-RLHF dialogues, prompts; from files, packages or a hub."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from specs.base import Count, Entry, Name, NotIdentity, Percent
from specs.sources import Revision, Source

DATA_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


class Data(Entry):
    """A table of rows in one of the known forms."""

    source: Source
    """A name of the data catalogue, a `.jsonl`, `.jsonl.gz` or `.parquet` file, or a hub id (with `revision`)."""
    revision: Revision | None = None
    """The commit hash of a hub data set."""
    subset: str | None = None
    """The configuration of a hub data set, where it has several."""
    hub_split: str = "train"
    """The split of a hub data set that is read."""
    format: Literal["preference", "hh_rlhf", "prompt"]
    """`preference`: TRL's form, columns `prompt` (may be implicit), `chosen`, `rejected`, plain text or
    messages. `hh_rlhf`: whole dialogues in `chosen` and `rejected`. `prompt`: a column `prompt`."""
    columns: dict[Literal["prompt", "chosen", "rejected"], str] = {}
    """Where the file calls a column by another name: `{prompt: question}`."""
    rows: Count | None = None
    """Use only the first so many rows."""
    split: Annotated[dict[Name, Count], Field(min_length=1)] | None = None
    """Disjoint parts by number of rows, named `prompts.train`. Rows with one prompt stay in one part."""
    max_dropped: Annotated[Percent, NotIdentity()] = "1%"
    """The share of rows that may be unusable before the stage that reads them fails."""

    produces: ClassVar[str] = "rows"

    @property
    def kind_name(self) -> str:
        return "data"

    @property
    def row_type(self) -> str:
        """The artifact type of the rows."""
        return "prompts" if self.format == "prompt" else "preference pairs"
