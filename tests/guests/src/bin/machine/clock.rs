//! RTC, its periodic interrupt through both PICs, CMOS memory and PCI configuration space.

use crate::external::virtual_wire;
use guests::interrupts::{Frame, count, off, on};
use guests::report::{Outcome, Tests, check, same};
use guests::{cpu, pic};

const ALARM: u8 = pic::BASE + 8;

pub(crate) unsafe fn run(tests: &mut Tests) {
    tests.run("rtc-date", date);
    tests.run("rtc-irq-through-second-pic", periodic);
    tests.run("cmos-memory", memory);
    tests.run("pci-configuration", configuration);
}

unsafe fn read(index: u8) -> u8 {
    cpu::out8(0x70, index);
    cpu::in8(0x71)
}

unsafe fn write(index: u8, value: u8) {
    cpu::out8(0x70, index);
    cpu::out8(0x71, value);
}

unsafe fn date() -> Outcome {
    check(cpu::wait_until(|| read(0xa) & 0x80 == 0), "the update never ends")?;
    check(read(0xd) & 0x80 != 0, "the battery is dead")?;
    let binary = read(0xb) & 4 != 0;
    for (index, least, most) in [(0, 0, 59), (2, 0, 59), (4, 0, 23), (7, 1, 31), (8, 1, 12), (9, 0, 99)] {
        let raw = read(index);
        let value = if binary { raw } else { (raw >> 4) * 10 + (raw & 0xf) };
        check(binary || raw & 0xf <= 9, "a digit above nine")?;
        check((least..=most).contains(&value), "out of range")?;
    }
    Ok(())
}

unsafe fn periodic() -> Outcome {
    unsafe fn serve(_: &mut Frame) {
        read(0xc);
        pic::end(8);
    }
    virtual_wire();
    on(ALARM, serve);
    let (rate, control) = (read(0xa), read(0xb));
    write(0xa, rate & 0xf0 | 6);
    write(0xb, control | 0x40);
    read(0xc);
    pic::set_mask(0xfefb);
    let came = cpu::wait_until(|| count(ALARM) >= 3);
    write(0xb, control);
    write(0xa, rate);
    read(0xc);
    cpu::breathe();
    pic::set_mask(0xffff);
    off(ALARM);
    check(came, "fewer than three interrupts at 1024 Hz")
}

unsafe fn memory() -> Outcome {
    let old = read(0x5e);
    for value in [0x5a, 0xa5] {
        write(0x5e, value);
        same("byte 5EH", read(0x5e), value)?;
    }
    write(0x5e, old);
    Ok(())
}

unsafe fn configuration() -> Outcome {
    cpu::out32(0xcf8, 0x8000_0008);
    same("configuration address", cpu::in32(0xcf8), 0x8000_0008u32)?;
    let class = cpu::in32(0xcfc) >> 16;
    same("class of device 0", class, 0x600u32)?;
    same("class of device 0 as a word", cpu::in16(0xcfe), 0x600u16)?;
    cpu::out32(0xcf8, 0x8000_f000);
    same("device 30", cpu::in32(0xcfc), 0xffff_ffffu32)?;
    cpu::out32(0xcf8, 0);
    Ok(())
}
