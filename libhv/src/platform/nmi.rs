//! Whom the processor's NMIs are for. They have no vector that would tell sources apart, so there is one user at a time.

use crate::error::{Error, NmiUser, Result};
use core::sync::atomic::{AtomicU8, Ordering};

const USERS: [NmiUser; 3] = [NmiUser::HostCounters, NmiUser::Watchdog, NmiUser::Guest];

/// One more than the user's position in [`USERS`]; 0 without one.
static USER: AtomicU8 = AtomicU8::new(0);

/// Returns whom NMIs are for; `None` where nobody has asked for them.
pub fn user() -> Option<NmiUser> {
    USERS.get(usize::from(USER.load(Ordering::SeqCst)).wrapping_sub(1)).copied()
}

/// The right to NMIs, which ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Claim(());

/// Claims NMIs for `wanted`.
///
/// # Errors
/// [`Error::NmisInUse`] when somebody has them.
pub(crate) fn claim(wanted: NmiUser) -> Result<Claim> {
    let number = 1 + wanted as u8;
    match USER.compare_exchange(0, number, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => Ok(Claim(())),
        Err(_) => Err(Error::NmisInUse { by: user().unwrap_or(wanted), wanted }),
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        USER.store(0, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requirement A27: a guest that gets NMIs without an exit would take those of the host's watchdog.
    #[test]
    fn nmis_have_one_user_at_a_time() {
        for (by, wanted) in USERS.into_iter().flat_map(|by| USERS.map(|wanted| (by, wanted))) {
            assert_eq!(user(), None);
            let claim = super::claim(by).expect("nobody has them");
            assert_eq!(user(), Some(by));
            assert_eq!(super::claim(wanted).err(), Some(Error::NmisInUse { by, wanted }));
            drop(claim);
        }
    }
}
