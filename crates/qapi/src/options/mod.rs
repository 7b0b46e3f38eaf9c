//! What the command line options accept, and `blockdev-add` and its like over QMP.
//!
//! | option | type | implied key |
//! |---|---|---|
//! | `--blockdev` | [`BlockdevOptions`] | `driver` |
//! | `--export` | [`ExportOptions`] | `type` |
//! | `--object` | [`ObjectOptions`] | `qom-type` |
//! | `--monitor` | [`MonitorOptions`] | `chardev` |
//! | `--chardev` | [`ChardevOptions`] | backend |
//!
//! Each has a `parse` for the argument of its option. Optional members that were not given are
//! `None`; the accessor methods know the defaults.

mod access;
mod address;
mod blockdev;
mod chardev;
mod export;
mod monitor;
mod object;
mod qcow2;
mod throttle;
mod vmm;

pub use access::SocketAccess;
pub use address::{FdAddress, InetAddress, UnixAddress, VsockAddress};
pub use blockdev::{
    AioMode, BACKING, BlkdebugEvent, BlkdebugInjectError, BlkdebugIoType, BlkdebugOptions,
    BlkdebugSetState, BlockdevBase, BlockdevDriver, BlockdevDriverOptions, BlockdevOptions,
    BlockdevRef, BlockdevRefOrNull, CacheOptions, CopyOnReadOptions, DATA_FILE, DetectZeroes,
    DiscardMode, FileOptions, Locking, NullOptions, Qcow2Options, QuotaOptions, RawOptions,
    Referred, ThrottleOptions,
};
pub use chardev::{
    CHARDEV_BACKENDS, CHARDEV_PARAMETERS, ChardevAddress, ChardevAddressKind,
    ChardevAddressVariant, ChardevBackend, ChardevBackendBase, ChardevCommon, ChardevFile,
    ChardevKind, ChardevOptions, ChardevPty, ChardevRingbuf, ChardevSocket, ChardevStdio,
    ChardevVariant, Data, ParameterKind,
};
pub use export::{
    BlockExportIothreads, ExportBase, ExportOptions, ExportType, ExportVariant, HoldScope, OnError,
    SocketAddress, SocketAddressBase, SocketAddressType, SocketAddressVariant, VhostUserBlkOptions,
};
pub use monitor::{MonitorMode, MonitorOptions};
pub use object::{
    IothreadOptions, ObjectBase, ObjectOptions, ObjectType, ObjectVariant, SecretFormat,
    SecretOptions,
};
pub use qcow2::{Qcow2OverlapCheckFlags, Qcow2OverlapCheckMode, Qcow2OverlapChecks};
pub use throttle::{ThrottleGroupOptions, ThrottleLimits};
pub use vmm::{VmmArgv, VmmCommandOptions, VmmSocketOptions};

#[cfg(test)]
mod tests;
