"""`dialstream topics create`."""

from ingest.eventlog.journal import journal_folder
from ingest.settings import Settings
from schemas.topics import DAY_S, TOPICS


def create_topics(settings: Settings) -> int:
    """Make a folder for each topic; print what each is for; the exit code."""
    folder = journal_folder(settings.eventlog.path)
    for topic in TOPICS.values():
        is_new = not (folder / topic.name).exists()
        (folder / topic.name).mkdir(parents=True, exist_ok=True)
        keeps = "compacted" if topic.retention_s is None else f"{topic.retention_s // DAY_S} days"
        print(f"{'made' if is_new else 'there':<6} {topic.name:<14} {keeps:<10} {topic.holds}")
    return 0
