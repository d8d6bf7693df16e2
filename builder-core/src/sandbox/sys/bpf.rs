//! Seccomp filters from rules: system call number → action. seccomp(2), "Filters".
//!
//! The numbers are compared by halving, so that a filter for a hundred calls costs a call that it does not name a dozen
//! instructions. (Where all is allowed whatever the arguments, the kernel does not even ask the filter, since Linux 5.11.)

use libc::sock_filter;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The kernel does it.
    Allow,
    /// It fails with this number without being done.
    Errno(u16),
    /// Whoever holds the listener answers: `SECCOMP_RET_USER_NOTIF`, since Linux 5.0.
    Notify,
    /// The thread gets SIGSYS, which its tracer sees first. Of several filters' answers it counts before `Errno`, `Notify` and
    /// `Trace`: a call that somebody else's filter refuses can be seen no other way. `SECCOMP_RET_TRAP`.
    Trap,
    /// The tracer is stopped for, with this number as event message; without a tracer `ENOSYS`: `SECCOMP_RET_TRACE`.
    Trace(u16),
}

impl Action {
    const fn value(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Errno(errno) => libc::SECCOMP_RET_ERRNO | errno as u32,
            Self::Notify => libc::SECCOMP_RET_USER_NOTIF,
            Self::Trap => libc::SECCOMP_RET_TRAP,
            Self::Trace(message) => libc::SECCOMP_RET_TRACE | message as u32,
        }
    }
}

/// Which calls of a number a rule is for; the others are allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// All.
    Always,
    /// Those whose argument (0 to 5) is not zero in all of its 64 bits.
    NotZero(u8),
    /// Those whose argument has one of these bits, all in its lower half.
    AnyBit(u8, u32),
    /// Those whose argument lacks one of these bits, all in its lower half.
    Lacks(u8, u32),
    /// Those whose argument is one of these, compared by its lower half.
    OneOf(u8, Vec<u32>),
    /// Those of which one argument is this and another one is not that, compared by their lower halves.
    IsAndIsNot((u8, u32), (u8, u32)),
}

/// One line of a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Number of the call.
    pub number: u32,
    /// When.
    pub when: When,
    /// What.
    pub action: Action,
}

impl Rule {
    /// For every call of this number.
    pub fn always(number: libc::c_long, action: Action) -> Self {
        Self::when(number, When::Always, action)
    }

    /// For some calls of this number.
    pub fn when(number: libc::c_long, when: When, action: Action) -> Self {
        Self { number: u32::try_from(number).expect("call numbers are small"), when, action }
    }
}

/// `AUDIT_ARCH_…` of this machine's own calls, linux/audit.h.
#[cfg(target_arch = "x86_64")]
pub const NATIVE: u32 = 0xC000_003E;
/// `AUDIT_ARCH_…` of this machine's own calls, linux/audit.h.
#[cfg(target_arch = "aarch64")]
pub const NATIVE: u32 = 0xC000_00B7;
/// No architecture: nothing is native on a machine that nobody has written a filter for.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub const NATIVE: u32 = 0;

/// Bit of x32 calls in numbers of x86-64. They are not written down anywhere below, so all of them fail with `ENOSYS`.
const X32: u32 = 0x4000_0000;

// Offsets in struct seccomp_data, linux/seccomp.h. Both machines are little-endian: the low half of an argument comes first.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Rules that a linear search compares at the end of the halving.
const LEAF: usize = 4;

/// The filter that does what `rules` say, allows other calls, and takes `foreign` for those of another architecture (32-bit
/// programs). Of two rules for one number the first counts.
pub fn filter(rules: &[Rule], foreign: Action) -> Vec<sock_filter> {
    whole(rules, vec![answer(foreign)])
}

/// The same, with rules for the calls of another architecture, by its numbers.
pub fn filter_both(rules: &[Rule], foreign: &[Rule]) -> Vec<sock_filter> {
    let mut body = vec![load(NUMBER)];
    body.extend(search(&sorted(foreign)));
    whole(rules, body)
}

fn whole(rules: &[Rule], foreign: Vec<sock_filter>) -> Vec<sock_filter> {
    let skip = u32::try_from(foreign.len()).expect("4096 at most");
    let skip = instruction(libc::BPF_JMP | libc::BPF_JA, skip, 0, 0);
    let mut program = vec![load(ARCHITECTURE), jump(libc::BPF_JEQ, NATIVE, 0, 1), skip];
    program.extend(foreign);
    program.push(load(NUMBER));
    if cfg!(target_arch = "x86_64") {
        program.extend([jump(libc::BPF_JGE, X32, 0, 1), answer(Action::Errno(libc::ENOSYS as u16))]);
    }
    program.extend(search(&sorted(rules)));
    program
}

fn sorted(rules: &[Rule]) -> Vec<Rule> {
    let mut sorted = rules.to_vec();
    sorted.sort_by_key(|rule| rule.number);
    sorted.dedup_by_key(|rule| rule.number);
    sorted
}

/// Ends in an answer on every path.
fn search(rules: &[Rule]) -> Vec<sock_filter> {
    if rules.len() <= LEAF {
        let mut program: Vec<_> = rules.iter().flat_map(one).collect();
        program.push(answer(Action::Allow));
        return program;
    }
    let (low, high) = rules.split_at(rules.len() / 2);
    let (low, right) = (search(low), search(high));
    // Conditional jumps reach 255 instructions, the other kind any number.
    let skip = instruction(libc::BPF_JMP | libc::BPF_JA, u32::try_from(low.len()).expect("4096 at most"), 0, 0);
    let mut program = vec![jump(libc::BPF_JGE, high[0].number, 0, 1), skip];
    program.extend(low);
    program.extend(right);
    program
}

/// Falls through if the number is another one; the accumulator holds the number then.
fn one(rule: &Rule) -> Vec<sock_filter> {
    let act = answer(rule.action);
    let allow = answer(Action::Allow);
    let low = |argument: u8| load(ARGUMENTS + 8 * u32::from(argument));
    let high = |argument: u8| load(ARGUMENTS + 8 * u32::from(argument) + 4);
    let body = match &rule.when {
        When::Always => vec![act],
        When::NotZero(argument) => vec![
            low(*argument),
            jump(libc::BPF_JEQ, 0, 0, 2),
            high(*argument),
            jump(libc::BPF_JEQ, 0, 1, 0),
            act,
            allow,
        ],
        When::AnyBit(argument, bits) => vec![low(*argument), jump(libc::BPF_JSET, *bits, 0, 1), act, allow],
        When::Lacks(argument, bits) => vec![
            low(*argument),
            instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, *bits, 0, 0),
            jump(libc::BPF_JEQ, *bits, 1, 0),
            act,
            allow,
        ],
        When::IsAndIsNot((one, is), (other, is_not)) => {
            vec![low(*one), jump(libc::BPF_JEQ, *is, 0, 3), low(*other), jump(libc::BPF_JEQ, *is_not, 1, 0), act, allow]
        }
        When::OneOf(argument, values) => {
            let mut body = vec![low(*argument)];
            body.extend(values.iter().flat_map(|&value| [jump(libc::BPF_JEQ, value, 0, 1), act]));
            body.push(allow);
            body
        }
    };
    let length = u8::try_from(body.len()).expect("rules have a dozen instructions");
    let mut program = vec![jump(libc::BPF_JEQ, rule.number, 0, length)];
    program.extend(body);
    program
}

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

fn jump(test: u32, value: u32, met: u8, otherwise: u8) -> sock_filter {
    instruction(libc::BPF_JMP | test | libc::BPF_K, value, met, otherwise)
}

fn answer(action: Action) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, action.value(), 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: u16::try_from(code).expect("BPF codes have 8 bits"), jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel does.
    fn run(program: &[sock_filter], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_le_bytes());
        data.extend(arch.to_le_bytes());
        data.extend([0; 8]);
        args.iter().for_each(|arg| data.extend(arg.to_le_bytes()));
        let (mut at, mut acc) = (0, 0);
        loop {
            let now = program[at];
            at += 1;
            let code = u32::from(now.code);
            let k = now.k;
            match code & 7 {
                libc::BPF_LD => {
                    let k = k as usize;
                    acc = u32::from_le_bytes(data[k..k + 4].try_into().expect("four bytes"));
                }
                libc::BPF_ALU => acc &= k,
                libc::BPF_RET => return k,
                libc::BPF_JMP if code & 0xf0 == libc::BPF_JA => at += k as usize,
                libc::BPF_JMP => {
                    let met = match code & 0xf0 {
                        libc::BPF_JEQ => acc == k,
                        libc::BPF_JGE => acc >= k,
                        libc::BPF_JSET => acc & k != 0,
                        other => panic!("unknown test {other}"),
                    };
                    at += usize::from(if met { now.jt } else { now.jf });
                }
                other => panic!("unknown class {other}"),
            }
        }
    }

    #[test]
    fn every_number_gets_its_action() {
        let mut rules: Vec<Rule> =
            (0..200).rev().map(|n| Rule::always(n * 2, Action::Errno(1 + n as u16 % 7))).collect();
        rules.push(Rule::always(0, Action::Notify));
        let program = filter(&rules, Action::Notify);
        for number in 0..400_u32 {
            let expected = if number % 2 == 0 { Action::Errno(1 + (number / 2) as u16 % 7) } else { Action::Allow };
            assert_eq!(run(&program, NATIVE, number, [0; 6]), expected.value(), "{number}");
        }
        assert_eq!(run(&program, 0x4000_0003, 1, [0; 6]), Action::Notify.value());
    }

    #[test]
    fn other_machines_have_their_own_numbers() {
        let native: Vec<Rule> = (0..100).map(|n| Rule::always(n, Action::Errno(1))).collect();
        let foreign: Vec<Rule> = (0..100).map(|n| Rule::when(n * 2, When::NotZero(0), Action::Notify)).collect();
        let program = filter_both(&native, &foreign);
        for (arch, number, argument, expected) in [
            (NATIVE, 8, 0, Action::Errno(1)),
            (NATIVE, 100, 1, Action::Allow),
            (0x4000_0003, 8, 0, Action::Allow),
            (0x4000_0003, 8, 1, Action::Notify),
            (0x4000_0003, 9, 1, Action::Allow),
            (0x4000_0003, 198, 1, Action::Notify),
        ] {
            assert_eq!(run(&program, arch, number, [argument, 0, 0, 0, 0, 0]), expected.value(), "{arch:#x} {number}");
        }
    }

    #[test]
    fn arguments_decide() {
        let rules = [
            Rule::when(1, When::NotZero(4), Action::Trace(7)),
            Rule::when(2, When::AnyBit(0, 0x80), Action::Errno(1)),
            Rule::when(3, When::OneOf(1, vec![5, 9]), Action::Notify),
            Rule::when(5, When::Lacks(2, 0xc0), Action::Notify),
            Rule::when(6, When::IsAndIsNot((0, 4), (1, 1)), Action::Notify),
        ];
        let program = filter(&rules, Action::Allow);
        let check = |number, args: [u64; 6], expected: Action| {
            assert_eq!(run(&program, NATIVE, number, args), expected.value(), "{number} {args:?}");
        };
        check(1, [9, 9, 9, 9, 0, 9], Action::Allow);
        check(1, [0, 0, 0, 0, 1, 0], Action::Trace(7));
        check(1, [0, 0, 0, 0, 1 << 32, 0], Action::Trace(7));
        check(2, [0x7f, 0x80, 0, 0, 0, 0], Action::Allow);
        check(2, [0x181, 0, 0, 0, 0, 0], Action::Errno(1));
        check(3, [5, 4, 0, 0, 0, 0], Action::Allow);
        check(3, [0, 9, 0, 0, 0, 0], Action::Notify);
        check(5, [0, 0, 0x41, 0, 0, 0], Action::Notify);
        check(5, [0, 0, 0xc1, 0, 0, 0], Action::Allow);
        check(6, [4, 0, 0, 0, 0, 0], Action::Notify);
        check(6, [4, 1, 0, 0, 0, 0], Action::Allow);
        check(6, [3, 0, 0, 0, 0, 0], Action::Allow);
        check(4, [5, 5, 5, 5, 5, 5], Action::Allow);
    }
}
