//! Bounds of a node's partitions, and their deliberately broken variants.
//!
//! Owns: both types. Does not own: where the values come from (`server`, `sim`).

use std::path::PathBuf;
use surefoot_machine::Mutant as MachineMutant;

/// Bounds of a node's partitions.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often expired completions are swept.
    pub cleanup_interval_ms: u64,
    /// Bytes of completed invocations kept on this node beyond which the oldest journals and unnamed results go (rule R1).
    pub retained_bytes_max: u64,
    /// Memory of all layers of this node at which the edges wait, half of it for the active ones. Attempts that run take theirs from it.
    pub memory_bytes_max: u64,
    /// What an attempt that runs takes of that.
    pub attempt_bytes: u64,
    /// Bytes that the outer edges may have appended and not yet durable; one event may pass it alone.
    pub edge_bytes_max: usize,
    /// Bytes of replays that are being read from views; one may pass it alone.
    pub load_bytes_max: u64,
    /// An attempt begins with so many bytes of its journal, or the entry that makes them more, and reads as many at a time while its handler takes
    /// them.
    pub journal_part_bytes: u64,
    /// Bytes of messages between partitions that are sent and not durable; one may pass it alone.
    pub outbox_bytes_max: u64,
    /// A directory on the disk that holds log and tables.
    pub disk_dir: PathBuf,
    /// With less of it free than this, or than a quarter of it, the edges refuse; with half of that, running work waits (rule R2).
    pub disk_reserve_bytes_max: u64,
    /// Active layers of this node are written at this many bytes, however much memory may hold: what is written has to fit on the disk.
    pub disk_active_bytes_max: u64,
    /// Bytes of log beyond which the partition that holds its oldest segment is checkpointed before its time (rule C5).
    pub log_bytes_max: u64,
    /// A partition that changed is checkpointed at least this often.
    pub checkpoint_interval_ms: u64,
    /// Log bytes of one partition that a restart may have to apply.
    pub replay_bytes_max: u64,
    /// Worker threads.
    pub workers: usize,
    /// What the simulator breaks on purpose, here and in the machine.
    pub mutant: Mutant,
    pub machine_mutant: MachineMutant,
}

impl Settings {
    /// Memory that the active layers of all partitions may take before the largest one is written, where tables may take so much.
    pub(crate) fn active_bytes_max(&self, tables_bytes_max: u64) -> u64 {
        (tables_bytes_max / 2).min(self.disk_active_bytes_max)
    }
}

/// Deliberately broken variants, each of which a check must catch: a scenario of this room, or the simulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutant {
    #[default]
    None,
    /// Trims the log when a checkpoint begins, not when it is synced (rule C2).
    TrimAtFreeze,
    /// Trims the log of a partition that has stopped (rule C5).
    ForgetStopped,
    /// Does not look for messages that an earlier term had not sent (rule O1).
    ForgetOutbox,
    /// Sends messages to a partition that has stopped, and acknowledges them (rule O1).
    SendToStopped,
    /// Appends for a partition that could not be opened under the epoch of a partition that never had a leader (rule M8).
    ForgetEpoch,
    /// Replays the whole tail into memory before anything of it is written (rule C7).
    FillMemory,
    /// Does not look for timers that an earlier term had set.
    ForgetTimers,
    /// Does not look for chores that an earlier term had left (rule M9).
    ForgetChores,
    /// Fires timers up to a second early (rule T2).
    FireEarly,
    /// Sleeps until the next timer is due by the monotonic clock, without a look at the wall clock (rule T2).
    SleepThrough,
    /// A checkpoint waits for memory, as attempts do (rule O3).
    CheckpointWaits,
    /// Fires all timers that are due, whatever they resume (rule O5).
    FloodResumed,
    /// Wakes nobody for a place that has become free (rule O5).
    LoseWake,
    /// Does not look for attempts that an earlier term had running (rule M6).
    ForgetRunning,
    /// Takes no last checkpoint at a stop (rule M7).
    StopBetween,
    /// Says that a change of the catalog is stored when it is asked for (rule M2).
    AnswerEarly,
    /// Applies by what a setting says that recovery does not have (rule M1).
    LookAtSettings,
    /// Sends an attempt to the newest deployment, wherever the invocation began (rule M1).
    IgnorePin,
    /// Sends the newest notification of a replay live, too (rule M5).
    ShowTwice,
    /// Leaves nothing of the disk free (rule R2).
    IgnoreDisk,
    /// Leaves the edges shut once the disk was short (rule R2).
    StayShut,
    /// Wakes nobody who waits at the edges once there is room (rule R2).
    LoseRoom,
    /// Lets in what is large as if it were small (rule O8).
    IgnoreSize,
    /// Leaves notifications at the end of a journal out of its replay, and does not send them live either (rule M5).
    ShowLess,
}
