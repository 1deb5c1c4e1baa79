# A flat binary for 64-bit mode: prints the first letter of the command line, whose address is in RDI, on COM1 and ends through
# port F4H with 16H (status 45), a number that only a 64-bit shift leaves in EAX.
# long.bin is made of this: as long.s -o long.o && objcopy -O binary -j .text long.o long.bin
    .intel_syntax noprefix
    .code64
    mov edx, 0x3f8
    mov al, [rdi]
    call print
    mov al, '\n'
    call print
    movabs rax, 0x1600000000
    shr rax, 32
    out 0xf4, eax
    hlt
print:
    out dx, al
    ret
