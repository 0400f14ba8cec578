"""Everything that the bot raises on purpose.

    BotError
    ├── IllegalTransition     an action was asked of a request whose state does not allow it: a bug, or a lost race
    ├── StoreError
    │   ├── NothingDone       it failed before COMMIT: the database is as it was
    │   ├── CommitInDoubt     it failed in COMMIT: read again before saying anything
    │   ├── Overtaken         the guard of a change moved no row: the lease is lost or somebody was faster
    │   └── WrongRevision     the database is older or newer than this program
    ├── AuditBroken           the audit's chain does not verify: nothing is signed
    └── MessengerError
        ├── CannotPost        Slack says no, and will say no again (`error` is Slack's word)
        └── TryLater          Slack is away, slow or limits us (`retry_after_s`; `nothing_done` if that is certain)

What the exchange answers is no exception but a value: see `bot.domain.answer`.
"""


class BotError(Exception):
    pass


class IllegalTransition(BotError):
    pass


class StoreError(BotError):
    pass


class NothingDone(StoreError):
    pass


class CommitInDoubt(StoreError):
    pass


class Overtaken(StoreError):
    pass


class WrongRevision(StoreError):
    pass


class AuditBroken(BotError):
    pass


class MessengerError(BotError):
    pass


class CannotPost(MessengerError):
    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


class TryLater(MessengerError):
    def __init__(self, cause: str, *, retry_after_s: float = 0.0, nothing_done: bool = False) -> None:
        super().__init__(cause)
        self.cause = cause
        self.retry_after_s = retry_after_s
        self.nothing_done = nothing_done
