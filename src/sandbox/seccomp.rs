//! Compiles the table of system calls into one seccomp filter. See
//! <https://docs.kernel.org/userspace-api/seccomp_filter.html>.
//!
//! The filter is a binary search over the numbers, since the kernel runs it for each number when a worker installs it, to
//! learn which calls it always allows. A chain of comparisons, as libseccomp and seccompiler generate, makes that six
//! times as long.

use std::collections::BTreeMap;

use libc::sock_filter as Instruction;

use super::system_calls::{ANSWERS, Allowed, LEGACY_CALLS, NEWEST, SYSTEM_CALLS, When, Workers};

/// AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64 of linux/audit.h.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// The instructions of classic BPF in use, from linux/bpf_common.h.
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// The offsets in `struct seccomp_data` of linux/seccomp.h.
const NUMBER_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;
const ARGUMENTS_OFFSET: u32 = 16;

/// The filter of these workers.
///
/// A system call that is not in the table fails with EPERM rather than killing the process, since under gVisor
/// SECCOMP_RET_KILL_PROCESS ends only the thread. A call of another architecture kills the process. The numbers of the
/// x32 ABI are above those of all calls.
pub fn filter(workers: Workers) -> Vec<Instruction> {
    let mut program = vec![
        load(ARCH_OFFSET),
        instruction(JUMP_IF_EQUAL, 1, 0, ARCH),
        returns(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER_OFFSET),
    ];
    program.extend(search(&leaves(workers)));
    program
}

/// What happens to the system calls from `first` on, up to those of the next leaf.
struct Leaf {
    first: u32,
    code: Vec<Instruction>,
}

/// The leaves for all numbers, in ascending order, the first for number 0. Neighbors differ.
fn leaves(workers: Workers) -> Vec<Leaf> {
    let mut by_number: BTreeMap<u32, Vec<Instruction>> = BTreeMap::new();
    let rows = SYSTEM_CALLS.iter().chain(LEGACY_CALLS);
    for row in rows.filter(|row| row.workers.includes(workers)) {
        by_number.entry(row.number as u32).or_default().extend(allow(row));
    }
    for answer in ANSWERS {
        let verdict = errno(answer.errno);
        by_number.entry(answer.number as u32).or_default().extend(rule(answer.when, verdict));
    }
    let mut leaves: Vec<Leaf> = vec![];
    let mut push = |first, code: Vec<Instruction>| {
        if leaves.last().is_none_or(|last| !same(&last.code, &code)) {
            leaves.push(Leaf { first, code });
        }
    };
    for number in 0..=NEWEST {
        let mut code = by_number.remove(&number).unwrap_or_default();
        // A rule without conditions has decided already.
        if code.len() != 1 {
            code.push(returns(errno(libc::EPERM)));
        }
        push(number, code);
    }
    push(NEWEST + 1, vec![returns(errno(libc::ENOSYS))]);
    leaves
}

/// A binary search for the number in the accumulator.
fn search(leaves: &[Leaf]) -> Vec<Instruction> {
    match leaves {
        [] => vec![],
        [leaf] => leaf.code.clone(),
        _ => {
            let (lower, upper) = leaves.split_at(leaves.len() / 2);
            let (middle, lower) = (upper[0].first, search(lower));
            let mut code = match u8::try_from(lower.len()) {
                Ok(length) => vec![instruction(JUMP_IF_AT_LEAST, length, 0, middle)],
                // A conditional jump reaches only 255 instructions ahead.
                Err(_) => vec![
                    instruction(JUMP_IF_AT_LEAST, 0, 1, middle),
                    instruction(JUMP, 0, 0, lower.len() as u32),
                ],
            };
            code.extend(lower);
            code.extend(search(upper));
            code
        }
    }
}

fn allow(row: &Allowed) -> Vec<Instruction> {
    rule(row.when, libc::SECCOMP_RET_ALLOW)
}

/// Returns `verdict` if all conditions hold. Otherwise continues behind the rule.
fn rule(conditions: &[When], verdict: u32) -> Vec<Instruction> {
    // From the last to the first, since each needs the distance to the end.
    let mut code = vec![returns(verdict)];
    for condition in conditions.iter().rev() {
        let mut checks = check(*condition, code.len());
        checks.append(&mut code);
        code = checks;
    }
    code
}

/// Continues behind the check if the condition holds, otherwise skips the next `rest` instructions too.
fn check(condition: When, rest: usize) -> Vec<Instruction> {
    let rest = u8::try_from(rest).expect("BUG: the conditions of a row are short");
    match condition {
        When::Among(argument, values) => among(vec![load(low(argument))], values, rest),
        When::Masked(argument, mask, values) => {
            among(vec![load(low(argument)), instruction(AND, 0, 0, mask)], values, rest)
        }
        When::Within(argument, bits) => {
            among(vec![load(low(argument)), instruction(AND, 0, 0, !bits)], &[0], rest)
        }
        When::Null(argument) => vec![
            load(low(argument)),
            instruction(JUMP_IF_EQUAL, 0, rest + 2, 0),
            load(high(argument)),
            instruction(JUMP_IF_EQUAL, 0, rest, 0),
        ],
    }
}

/// Continues behind the check if the accumulator is one of `values`, otherwise skips the next `rest` instructions too.
fn among(mut code: Vec<Instruction>, values: &[u32], rest: u8) -> Vec<Instruction> {
    for (left, value) in (0..values.len() as u8).rev().zip(values) {
        let skipped = if left == 0 { rest } else { 0 };
        code.push(instruction(JUMP_IF_EQUAL, left, skipped, *value));
    }
    code
}

/// The offset of the lower half of an argument. Both architectures are little-endian.
fn low(argument: u8) -> u32 {
    ARGUMENTS_OFFSET + 8 * u32::from(argument)
}

fn high(argument: u8) -> u32 {
    low(argument) + 4
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}

fn load(offset: u32) -> Instruction {
    instruction(LOAD, 0, 0, offset)
}

fn returns(verdict: u32) -> Instruction {
    instruction(RETURN, 0, 0, verdict)
}

fn errno(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

fn same(one: &[Instruction], other: &[Instruction]) -> bool {
    let fields = |code: &[Instruction]| -> Vec<_> {
        code.iter().map(|step| (step.code, step.jt, step.jf, step.k)).collect()
    };
    fields(one) == fields(other)
}

/// A filter in the format of the kernel: `struct sock_filter`, in native byte order.
pub fn encode(program: &[Instruction]) -> Vec<[u8; 8]> {
    let encoded = program.iter().map(|step| {
        let ([c0, c1], [k0, k1, k2, k3]) = (step.code.to_ne_bytes(), step.k.to_ne_bytes());
        [c0, c1, step.jt, step.jf, k0, k1, k2, k3]
    });
    encoded.collect()
}
