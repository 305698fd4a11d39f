//! Type codes of control messages and of commands that are known but not supported, and everyone's name for display.
//!
//! Does not own: codes of journal entries ([`surefoot_model::entry_type`]). Source: protocol reference sections 4.2 and 5.

use surefoot_model::entry_type;

pub const START: u16 = 0x0000;
pub const SUSPENSION: u16 = 0x0001;
pub const ERROR: u16 = 0x0002;
pub const END: u16 = 0x0003;
pub const PROPOSE_RUN_COMPLETION: u16 = 0x0005;

/// Commands that a handler may send at the spoken versions and that this server does not carry out yet.
pub(crate) fn unsupported(ty: u16) -> bool {
    matches!(ty, 0x0409..=0x040B | 0x0410 | 0x0412..=0x0414)
}

/// The message's name in the protocol definition, for people.
pub fn name(ty: u16) -> Option<&'static str> {
    Some(match ty {
        START => "Start",
        SUSPENSION => "Suspension",
        ERROR => "Error",
        END => "End",
        0x0004 => "CommandAck",
        PROPOSE_RUN_COMPLETION => "ProposeRunCompletion",
        0x0006 => "AwaitingOn",
        0x0007 => "ProposeRunCompletionAck",
        entry_type::INPUT => "Input",
        entry_type::OUTPUT => "Output",
        entry_type::GET_LAZY_STATE => "GetLazyState",
        entry_type::SET_STATE => "SetState",
        entry_type::CLEAR_STATE => "ClearState",
        entry_type::CLEAR_ALL_STATE => "ClearAllState",
        entry_type::GET_LAZY_STATE_KEYS => "GetLazyStateKeys",
        entry_type::GET_EAGER_STATE => "GetEagerState",
        entry_type::GET_EAGER_STATE_KEYS => "GetEagerStateKeys",
        0x0409 => "GetPromise",
        0x040A => "PeekPromise",
        0x040B => "CompletePromise",
        entry_type::SLEEP => "Sleep",
        entry_type::CALL => "Call",
        entry_type::ONE_WAY_CALL => "OneWayCall",
        0x0410 => "SendSignal",
        entry_type::RUN => "Run",
        0x0412 => "AttachInvocation",
        0x0413 => "GetInvocationOutput",
        0x0414 => "CompleteAwakeable",
        _ => return None,
    })
}
