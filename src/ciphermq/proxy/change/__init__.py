"""Every change that can be made to a configuration, as a value that crosses processes.

``change.apply(configuration)`` gives the next configuration or raises `ProxyError` with a
sentence for whoever asked; it touches nothing else. The supervisor applies a change to its own
copy first, so what reaches a worker has been found right.

An addition that is there already, word for word, is no fault: set-up scripts are run again on
proxies that kept their configuration.

The changes are parted as the commands that make them are (`control`): `routes`, `access` and
`running`.
"""

from __future__ import annotations

from ciphermq.proxy.change.access import (
    AddCertificate,
    DeleteCertificate,
    ResetTls,
    SetAuth,
    SetCiphers,
    SetExternal,
    SetLimit,
    SetTlsFile,
    SetVerify,
    StartListening,
    StopListening,
    TlsFile,
)
from ciphermq.proxy.change.parts import check_limit, check_names
from ciphermq.proxy.change.routes import (
    AddBackend,
    AddFarm,
    DeleteBackend,
    DeleteFarm,
    DrainBackend,
    Map,
    PartitionFarm,
    SetDatacenter,
    SetDefault,
    SetPaused,
    Unmap,
)
from ciphermq.proxy.change.running import (
    LogSink,
    ReplaceAll,
    SetHostnames,
    SetLog,
    SetMetrics,
    SetPerSource,
    SetStatsd,
    SetTimeout,
)

__all__ = [
    "AddBackend",
    "AddCertificate",
    "AddFarm",
    "Change",
    "DeleteBackend",
    "DeleteCertificate",
    "DeleteFarm",
    "DrainBackend",
    "LogSink",
    "Map",
    "PartitionFarm",
    "ReplaceAll",
    "ResetTls",
    "SetAuth",
    "SetCiphers",
    "SetDatacenter",
    "SetDefault",
    "SetExternal",
    "SetHostnames",
    "SetLimit",
    "SetLog",
    "SetMetrics",
    "SetPaused",
    "SetPerSource",
    "SetStatsd",
    "SetTimeout",
    "SetTlsFile",
    "SetVerify",
    "StartListening",
    "StopListening",
    "TlsFile",
    "Unmap",
    "check_limit",
    "check_names",
]

Change = (
    AddBackend
    | DeleteBackend
    | DrainBackend
    | AddFarm
    | PartitionFarm
    | DeleteFarm
    | Map
    | Unmap
    | SetDefault
    | SetDatacenter
    | SetPaused
    | StartListening
    | StopListening
    | SetTlsFile
    | SetVerify
    | ResetTls
    | SetCiphers
    | AddCertificate
    | DeleteCertificate
    | SetLimit
    | SetAuth
    | SetExternal
    | SetTimeout
    | SetStatsd
    | SetPerSource
    | SetMetrics
    | SetHostnames
    | SetLog
    | ReplaceAll
)
