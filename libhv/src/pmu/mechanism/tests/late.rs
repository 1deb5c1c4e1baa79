//! Interrupts that come when their guest has left.

use super::*;

/// T-A13: an interrupt that comes when its guest has left waits for it, and no other guest gets it.
#[test]
fn a_late_interrupt_goes_to_the_guest_that_caused_it() {
    let mut rig = Rig::intel(intel::Config::default());
    let (mut one, mut other) = (rig.guest(Passthrough::new()), rig.guest(Passthrough::new()));
    rig.resume(&mut one);
    rig.pause(&mut one);
    rig.host.arrived = true;
    rig.resume(&mut other);
    assert_eq!(other.interrupts, 0);
    rig.pause(&mut other);
    rig.resume(&mut one);
    assert_eq!((one.interrupts, other.interrupts), (1, 0));
}

/// T-A12, T-A13: an interrupt that is on its way when the owner changes, or the guest ends, is kept for it: the entry is
/// masked once it has come.
#[test]
fn an_interrupt_on_its_way_when_the_owner_changes_waits_for_its_guest() {
    for ends in [false, true] {
        let mut rig = Rig::intel(intel::Config::default());
        let (mut one, mut other) = (rig.guest(Passthrough::new()), rig.guest(Passthrough::new()));
        rig.resume(&mut one);
        rig.wrmsr(&mut one, SELECTOR, INSTRUCTIONS | EventSelector::INTERRUPT).expect("legal");
        rig.wrmsr(&mut one, COUNTER, (1 << 48) - 1).expect("legal");
        rig.wrmsr(&mut one, CONTROL, 1).expect("legal");
        rig.host.skid = 8;
        rig.step(&mut one, 3, &ONE);
        assert_eq!(one.interrupts, 0, "it is on its way");
        if ends {
            one.mechanism.release(&mut rig.registers, &mut rig.host);
        }
        rig.pause(&mut one);
        rig.resume(&mut other);
        (0..5).for_each(|_| rig.step(&mut other, 3, &ONE));
        rig.pause(&mut other);
        rig.resume(&mut one);
        assert_eq!((one.interrupts, other.interrupts), (1, 0), "ends: {ends}");
    }
}
