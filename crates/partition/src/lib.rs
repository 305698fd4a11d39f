//! The loop log, machine, storage, effects
