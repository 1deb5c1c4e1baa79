# A flat binary for real mode: prints R on COM1 and ends through port F4H with 15H (status 43).
# real.bin is made of this: as real.s -o real.o && objcopy -O binary -j .text real.o real.bin
    .intel_syntax noprefix
    .code16
    mov dx, 0x3f8
    mov al, 'R'
    call print
    mov al, '\n'
    call print
    mov ax, 0x15
    out 0xf4, ax
    hlt
print:
    out dx, al
    ret
