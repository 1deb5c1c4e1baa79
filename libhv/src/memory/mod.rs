//! Memory: frames the host owns, the guest's memory, and the nested tables that map one onto the other.

pub mod frame;
pub mod guest;
pub mod nested;
pub mod permissions;
pub mod window;

pub use frame::{FrameSource, Frames};
pub use guest::{GuestMemory, NotMemory};
pub use nested::NestedTables;
pub use window::{GuestFrames, Window};
