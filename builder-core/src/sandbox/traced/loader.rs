//! Machine code that a new program's process runs before its first instruction: system calls, one after the other, then a trap.
//!
//! It is written over the program's entry and taken away again. The kernel has loaded the image's loader as if it were a
//! program; this maps the program itself, which the kernel could not find on its own: its loader is named by a path of the
//! image.

/// An argument of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// This number.
    Number(u64),
    /// What the call with `keep` returned.
    Kept,
}

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: libc::c_long,
    /// Up to six arguments.
    pub arguments: Vec<Value>,
    /// Whether its result is [`Value::Kept`] from here on.
    pub keep: bool,
}

impl Call {
    /// With arguments that are known.
    pub fn new(number: libc::c_long, arguments: &[u64]) -> Self {
        Self { number, arguments: arguments.iter().copied().map(Value::Number).collect(), keep: false }
    }
}

/// Code to put somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Where in them the instruction pointer is after all calls have worked.
    pub done: u64,
}

/// Makes the code; it traps elsewhere if a call fails.
#[cfg(target_arch = "x86_64")]
pub fn assemble(calls: &[Call]) -> Code {
    let mut code = Vec::new();
    let mut jumps = Vec::new();
    // rdi, rsi, rdx, r10, r8, r9: prefix and opcode of a move of 32 bits, of 64 bits, and from r12.
    const MOVES: [(&[u8], &[u8], [u8; 3]); 6] = [
        (&[0xbf], &[0x48, 0xbf], [0x4c, 0x89, 0xe7]),
        (&[0xbe], &[0x48, 0xbe], [0x4c, 0x89, 0xe6]),
        (&[0xba], &[0x48, 0xba], [0x4c, 0x89, 0xe2]),
        (&[0x41, 0xba], &[0x49, 0xba], [0x4d, 0x89, 0xe2]),
        (&[0x41, 0xb8], &[0x49, 0xb8], [0x4d, 0x89, 0xe0]),
        (&[0x41, 0xb9], &[0x49, 0xb9], [0x4d, 0x89, 0xe1]),
    ];
    for call in calls {
        for (argument, (narrow, wide, kept)) in call.arguments.iter().zip(MOVES) {
            match argument {
                Value::Kept => code.extend(kept),
                Value::Number(number) => match u32::try_from(*number) {
                    Ok(number) => {
                        code.extend(narrow);
                        code.extend(number.to_le_bytes());
                    }
                    Err(_) => {
                        code.extend(wide);
                        code.extend(number.to_le_bytes());
                    }
                },
            }
        }
        code.push(0xb8); // mov eax
        code.extend((call.number as u32).to_le_bytes());
        code.extend([0x0f, 0x05]); // syscall
        code.extend([0x48, 0x3d, 0x00, 0xf0, 0xff, 0xff]); // cmp rax, -4096
        code.extend([0x0f, 0x87, 0, 0, 0, 0]); // ja
        jumps.push(code.len());
        if call.keep {
            code.extend([0x49, 0x89, 0xc4]); // mov r12, rax
        }
    }
    code.push(0xcc); // int3
    let done = code.len() as u64;
    let failed = code.len();
    code.push(0xcc);
    for end in jumps {
        code[end - 4..end].copy_from_slice(&((failed - end) as u32).to_le_bytes());
    }
    Code { bytes: code, done }
}

/// Makes the code; it traps elsewhere if a call fails.
#[cfg(target_arch = "aarch64")]
pub fn assemble(calls: &[Call]) -> Code {
    let mut code: Vec<u32> = Vec::new();
    let mut jumps = Vec::new();
    fn load(code: &mut Vec<u32>, register: u32, number: u64) {
        code.push(0xd280_0000 | ((number & 0xffff) as u32) << 5 | register); // movz
        for half in 1..4 {
            let bits = (number >> (16 * half)) as u32 & 0xffff;
            if bits != 0 {
                code.push(0xf280_0000 | (half as u32) << 21 | bits << 5 | register); // movk
            }
        }
    }
    for call in calls {
        for (argument, register) in call.arguments.iter().zip(0..) {
            match argument {
                Value::Kept => code.push(0xaa13_03e0 | register), // mov xN, x19
                Value::Number(number) => load(&mut code, register, *number),
            }
        }
        load(&mut code, 8, call.number as u64);
        code.push(0xd400_0001); // svc #0
        code.push(0xb13f_fc1f); // cmn x0, #4095
        jumps.push(code.len());
        code.push(0); // b.hs
        if call.keep {
            code.push(0xaa00_03f3); // mov x19, x0
        }
    }
    let done = 4 * code.len() as u64;
    code.push(0xd420_0000); // brk #0
    let failed = code.len();
    code.push(0xd420_0000);
    for at in jumps {
        code[at] = 0x5400_0002 | ((failed - at) as u32) << 5;
    }
    Code { bytes: code.into_iter().flat_map(u32::to_le_bytes).collect(), done }
}
