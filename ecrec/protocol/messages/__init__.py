"""The messages of the protocol: small msgpack headers; row bytes travel beside them as frames.

Each message states its frames. ``keys``, ``rows`` and ``records`` are as in ``ecrec/_native.pyi``; shards in the
fields of messages between shards are numbered within their group. One module holds one conversation; all others
import from this package: ``from ecrec.protocol import messages as m``.
"""

from typing import TypeAlias

from ecrec.protocol.messages.adoption import (
    VIEWS_TOLD_MAX,
    Census,
    HeldLease,
    ShardCensus,
    StateCopy,
    WorkerCensus,
    is_my_scheduler,
)
from ecrec.protocol.messages.checkpoints import (
    BASES_MAX,
    CHECKPOINTS_MAX,
    URL_CHARACTERS_MAX,
    CheckpointBase,
    Restore,
    Restored,
    RestoredDataset,
    RestoredFrom,
    Save,
    SaveBegun,
    Saved,
    SavingFigures,
)
from ecrec.protocol.messages.clients import (
    LOCATED,
    UNSURE,
    AskChanges,
    Changed,
    Flush,
    Hello,
    Pull,
    PullRefused,
    Push,
    PushAck,
    PushRefused,
    Rows,
    Scrub,
    ScrubBusy,
    ScrubResult,
    Section,
    Welcome,
)
from ecrec.protocol.messages.common import (
    NUMBER_MAX,
    ROLE_NAMES,
    SCHEDULER,
    SCHEDULER_ADDRESS,
    SHARD,
    TOOL,
    WORKER,
    WORKERS_MAX,
    Address,
    Frames,
    Message,
    Number,
    NumberOrNone,
    Origin,
    cursor_key,
    pushes_of,
)
from ecrec.protocol.messages.leases import (
    CURSOR_BITS,
    LEASES_MAX,
    SPLIT_EXAMPLES_MAX,
    Dataset,
    Leased,
    LeaseSplit,
    NoSplit,
)
from ecrec.protocol.messages.members import (
    Drain,
    Draining,
    Fenced,
    HaltNow,
    Handover,
    Knock,
    Leave,
    LeaveWaits,
    Probe,
    Refused,
    Register,
    Report,
    ShardStatus,
    Succeed,
    Suspected,
    ToldToLeave,
    Unfit,
    Views,
    WorkerStatus,
)
from ecrec.protocol.messages.runs import RUN_BITS, JoinRun, LeaveRun, RunJoined, RunOver
from ecrec.protocol.messages.shards import (
    Captured,
    CaptureParity,
    Copied,
    Copy,
    CopyEnd,
    CorrectParity,
    Halt,
    Halted,
    Join,
    Joined,
    Marker,
    ParityCorrected,
    Ping,
    Repair,
    Repaired,
    RepairWanted,
    RepairWorking,
    Reseed,
    Snap,
    Stable,
    Stripes,
    Window,
    WindowAck,
)
from ecrec.protocol.messages.status import (
    ClusterQuery,
    ClusterState,
    DatasetFigures,
    HistoryEntry,
    Loss,
    LostRows,
    ShardFigures,
    StoryEvent,
    StoryQuery,
    StoryTold,
    Waiting,
)
from ecrec.protocol.messages.tables import (
    WAIT,
    WRITE,
    WRITTEN,
    CreateTable,
    InitialiseTable,
    PrepareTable,
    TableInitial,
    TableReady,
)
from ecrec.protocol.messages.views import (
    DOWN,
    NOT_WHOLE,
    RECOVERING,
    RESEEDING,
    UP,
    Adopted,
    AnyView,
    CheckpointAsked,
    CheckpointCut,
    CheckpointOver,
    Configured,
    Cut,
    DataLost,
    FullView,
    Member,
    Reinitialise,
    Settle,
    ShardDown,
    ShardUp,
    ShardWhole,
    Succeeded,
    Succession,
    SuccessionOver,
    TableAdded,
    View,
    WorkerFenced,
)

__all__ = [
    "BASES_MAX",
    "CHECKPOINTS_MAX",
    "CURSOR_BITS",
    "DOWN",
    "LEASES_MAX",
    "LOCATED",
    "NOT_WHOLE",
    "NUMBER_MAX",
    "RECOVERING",
    "RESEEDING",
    "ROLE_NAMES",
    "RUN_BITS",
    "SCHEDULER",
    "SCHEDULER_ADDRESS",
    "SHARD",
    "SPLIT_EXAMPLES_MAX",
    "TOOL",
    "UNSURE",
    "UP",
    "URL_CHARACTERS_MAX",
    "VIEWS_TOLD_MAX",
    "WAIT",
    "WORKER",
    "WORKERS_MAX",
    "WRITE",
    "WRITTEN",
    "Address",
    "Adopted",
    "AnyMessage",
    "AnyView",
    "AskChanges",
    "CaptureParity",
    "Captured",
    "Census",
    "Changed",
    "CheckpointAsked",
    "CheckpointBase",
    "CheckpointCut",
    "CheckpointOver",
    "ClusterQuery",
    "ClusterState",
    "Configured",
    "Copied",
    "Copy",
    "CopyEnd",
    "CorrectParity",
    "CreateTable",
    "Cut",
    "DataLost",
    "Dataset",
    "DatasetFigures",
    "Drain",
    "Draining",
    "Fenced",
    "Flush",
    "Frames",
    "FullView",
    "Halt",
    "HaltNow",
    "Halted",
    "Handover",
    "HeldLease",
    "Hello",
    "HistoryEntry",
    "InitialiseTable",
    "Join",
    "JoinRun",
    "Joined",
    "Knock",
    "LeaseSplit",
    "Leased",
    "Leave",
    "LeaveRun",
    "LeaveWaits",
    "Loss",
    "LostRows",
    "Marker",
    "Member",
    "Message",
    "NoSplit",
    "Number",
    "NumberOrNone",
    "Origin",
    "ParityCorrected",
    "Ping",
    "PrepareTable",
    "Probe",
    "Pull",
    "PullRefused",
    "Push",
    "PushAck",
    "PushRefused",
    "Refused",
    "Register",
    "Reinitialise",
    "Repair",
    "RepairWanted",
    "RepairWorking",
    "Repaired",
    "Report",
    "Reseed",
    "Restore",
    "Restored",
    "RestoredDataset",
    "RestoredFrom",
    "Rows",
    "RunJoined",
    "RunOver",
    "Save",
    "SaveBegun",
    "Saved",
    "SavingFigures",
    "Scrub",
    "ScrubBusy",
    "ScrubResult",
    "Section",
    "Settle",
    "ShardCensus",
    "ShardDown",
    "ShardFigures",
    "ShardStatus",
    "ShardUp",
    "ShardWhole",
    "Snap",
    "Stable",
    "StateCopy",
    "StoryEvent",
    "StoryQuery",
    "StoryTold",
    "Stripes",
    "Succeed",
    "Succeeded",
    "Succession",
    "SuccessionOver",
    "Suspected",
    "TableAdded",
    "TableInitial",
    "TableReady",
    "ToldToLeave",
    "Unfit",
    "View",
    "Views",
    "Waiting",
    "Welcome",
    "Window",
    "WindowAck",
    "WorkerCensus",
    "WorkerFenced",
    "WorkerStatus",
    "cursor_key",
    "is_my_scheduler",
    "pushes_of",
]

AnyMessage: TypeAlias = (
    Window
    | WindowAck
    | Stable
    | Join
    | Joined
    | Reseed
    | Repair
    | CaptureParity
    | Snap
    | Marker
    | Captured
    | Repaired
    | CorrectParity
    | ParityCorrected
    | Copy
    | CopyEnd
    | Copied
    | Halt
    | Halted
    | Ping
    | RepairWanted
    | RepairWorking
    | Hello
    | Welcome
    | Push
    | Flush
    | PushAck
    | PushRefused
    | Pull
    | Rows
    | PullRefused
    | Scrub
    | ScrubResult
    | ScrubBusy
    | Register
    | Knock
    | ShardStatus
    | WorkerStatus
    | Views
    | Probe
    | Suspected
    | Fenced
    | StateCopy
    | Census
    | ShardCensus
    | WorkerCensus
    | CreateTable
    | TableReady
    | LeaseSplit
    | Leased
    | NoSplit
    | JoinRun
    | RunJoined
    | LeaveRun
    | RunOver
    | InitialiseTable
    | TableInitial
    | PrepareTable
    | Unfit
    | Leave
    | LeaveWaits
    | Succeed
    | Handover
    | HaltNow
    | ToldToLeave
    | Drain
    | Draining
    | Refused
    | ClusterQuery
    | AskChanges
    | Changed
    | StoryQuery
    | StoryTold
    | ClusterState
    | Save
    | SaveBegun
    | Restore
    | Restored
)
"""Everything that can travel."""
