"""The durable log: groups, segments, recovery, compaction. It knows nothing of the broker."""

from ciphermq.journal.files import Buffer, Files, OsFiles
from ciphermq.journal.format import Location
from ciphermq.journal.journal import Journal, JournalStats, Snapshot
from ciphermq.journal.recovery import Cut, RecoveryReport, Replay

__all__ = [
    "Buffer",
    "Cut",
    "Files",
    "Journal",
    "JournalStats",
    "Location",
    "OsFiles",
    "RecoveryReport",
    "Replay",
    "Snapshot",
]
