use std::vec::Vec;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, pipe};

use super::*;
use crate::messages::Instruction;

const DESCRIPTORS: Descriptors =
    Descriptors { channel: 10, stdout: 11, stderr: 12, output: 13, ruleset: None };
const START: Start<'_> = Start {
    uid: None,
    warm_up: false,
    scratch: c"/",
    mount: None,
    has_ruleset: false,
    limits: &[],
};

fn policy(filter: &mut [Instruction]) -> Policy<'_> {
    Policy { prctl: false, user_namespace: false, own_process: u32::MAX, filter }
}

fn steps(lockdown: &Lockdown<'_, '_>) -> Vec<Step> {
    Step::ALL.into_iter().filter(|step| lockdown.has(*step)).collect()
}

#[test]
fn the_steps_have_a_fixed_order() {
    let mut filter = [[0; 8]];
    let policy = &mut Policy { prctl: true, user_namespace: true, ..policy(&mut filter) };
    let start = Start { uid: Some(61000), mount: Some(c"size=1m"), has_ruleset: true, ..START };
    let (output, _) = &sys::tests::output();
    let descriptors = Descriptors { ruleset: Some(14), ..DESCRIPTORS };
    let lockdown = Lockdown { policy, start, descriptors, output, zygote: 1 };
    assert_eq!(steps(&lockdown), Step::ALL);
}

#[test]
fn steps_that_the_host_lacks_are_left_out() {
    let policy = &mut policy(&mut []);
    let (output, _) = &sys::tests::output();
    let lockdown = Lockdown { policy, start: START, descriptors: DESCRIPTORS, output, zygote: 1 };
    let always =
        [Step::Start, Step::Output, Step::Descriptors, Step::Session, Step::Limits, Step::Scratch];
    assert_eq!(steps(&lockdown), always);
}

#[test]
fn a_filter_contains_the_process_id_of_its_worker() {
    let instruction = |operand: u32| {
        let [a, b, c, d] = operand.to_ne_bytes();
        [0x15, 0, 1, 2, a, b, c, d]
    };
    let mut filter = [62, u32::MAX, 7, u32::MAX].map(instruction);
    name_own_process(&mut policy(&mut filter), 4242);
    assert_eq!(filter, [62, 4242, 7, 4242].map(instruction));
}

/// Locks a child of this process down. Returns what it writes to its standard output, which is the first failure.
fn failure_of(policy: &mut Policy<'_>, start: Start<'_>, ruleset: Option<i32>) -> Option<Failure> {
    use std::io::Read;
    use std::os::fd::AsRawFd;

    let (ours, theirs) = pipe().unwrap();
    let theirs_number = theirs.as_raw_fd();
    let zygote = sys::process_id();
    #[expect(unsafe_code, reason = "a test of what a child does")]
    // SAFETY: the child only makes system calls on values of this stack, and ends.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let copies = [theirs_number; 3].map(|number| sys::duplicate_high(number).unwrap());
            let [channel, stdout, stderr] = copies;
            let (memory, output) = sys::tests::output();
            let descriptors = Descriptors { channel, stdout, stderr, output, ruleset };
            let mut lockdown = Lockdown { policy, start, descriptors, output: &memory, zygote };
            if let Err(failure) = lockdown.carry_out() {
                // The place of the channel, or its first number if that is where it failed.
                let channel = if failure.step == Step::Descriptors { channel } else { CHANNEL };
                let _ = libc_write(channel, &failure.encode());
            }
            sys::exit(0)
        }
        ForkResult::Parent { child } => {
            drop(theirs);
            let mut sent = Vec::new();
            std::fs::File::from(ours).read_to_end(&mut sent).unwrap();
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
            sent.as_slice().try_into().ok().and_then(Failure::decode)
        }
    }
}

fn libc_write(descriptor: i32, bytes: &[u8]) -> nix::Result<usize> {
    #[expect(unsafe_code, reason = "nix wants to know who closes it")]
    // SAFETY: the process ends right after, so nothing else closes the descriptor meanwhile.
    nix::unistd::write(unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) }, bytes)
}

#[test]
fn a_lockdown_that_can_be_carried_out_reports_nothing() {
    let limits = [Limit { resource: 4, soft: 0, hard: 0 }.encode()];
    let start = Start { limits: &limits, ..START };
    assert_eq!(failure_of(&mut policy(&mut []), start, None), None);
}

#[test]
fn a_step_that_fails_is_named_with_its_errno() {
    let failure = |start, ruleset| failure_of(&mut policy(&mut []), start, ruleset);
    let named = |step, errno| Some(Failure { step, errno });
    // ENOENT, EINVAL and EBADF.
    assert_eq!(failure(Start { scratch: c"/nowhere", ..START }, None), named(Step::Scratch, 2));
    let limits = [Limit { resource: 99, soft: 0, hard: 0 }.encode()];
    assert_eq!(failure(Start { limits: &limits, ..START }, None), named(Step::Limits, 22));
    assert_eq!(failure(START, Some(4000)), named(Step::Descriptors, 9));
    // A ruleset that was promised and did not arrive. An ordinary user needs no_new_privs first.
    let start = Start { has_ruleset: true, ..START };
    let policy = &mut Policy { prctl: true, ..policy(&mut []) };
    assert_eq!(failure_of(policy, start, None), named(Step::Landlock, 9));
}

/// A program must end with a return.
#[test]
fn a_filter_that_the_kernel_refuses_ends_the_lockdown() {
    let mut filter = [[0; 8]];
    let policy = &mut Policy { prctl: true, ..policy(&mut filter) };
    let refused = Some(Failure { step: Step::Seccomp, errno: 22 });
    assert_eq!(failure_of(policy, START, None), refused);
}

#[test]
fn a_worker_whose_zygote_is_gone_fails() {
    assert_eq!(die_with(0), Err(ESRCH));
}
