//! The site rule as sentences, on bytes as compilers emit them, and on random bytes.

use proptest::prelude::*;

use super::*;

const NEW: Emulation = Emulation { push: true, nop5: true };
const OLD: Emulation = Emulation { push: false, nop5: false };
const AT: u64 = 0x1000;

fn chosen(code: &[u8], signature: Signature) -> Site {
    choose(code, AT, signature, NEW).unwrap()
}

#[test]
fn a_push_at_the_entry_is_the_site() {
    // push r12; mov rbx,rdi; ret
    let site = chosen(&[0x41, 0x54, 0x48, 0x89, 0xfb, 0xc3], Signature::Malloc);
    assert_eq!(site, Site { offset: 0, instruction: "push r12".into(), emulated: true });
}

#[test]
fn endbr64_is_passed() {
    let code = [0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0xc3]; // endbr64; push rbp; ret
    let site = chosen(&code, Signature::Malloc);
    assert_eq!((site.offset, site.emulated), (4, true));
}

#[test]
fn a_free_that_tests_its_argument_is_probed_on_the_branch_and_not_beyond() {
    // test rdi,rdi; je +4; push rbp; ret (glibc's free)
    let code = [0x48, 0x85, 0xff, 0x74, 0x04, 0x55, 0xc3];
    let site = chosen(&code, Signature::Free);
    assert_eq!((site.offset, site.emulated), (3, true));
    assert!(site.instruction.starts_with("je"), "{}", site.instruction);
}

#[test]
fn an_instruction_that_changes_a_needed_argument_is_not_passed() {
    // mov rdi,rsi; push rbp; ret
    let code = [0x48, 0x89, 0xf7, 0x55, 0xc3];
    let site = chosen(&code, Signature::Malloc);
    assert_eq!((site.offset, site.emulated), (0, false));
    // mov edi,edi counts as a change as well
    let site = chosen(&[0x89, 0xff, 0x55, 0xc3], Signature::Malloc);
    assert_eq!(site.offset, 0);
}

#[test]
fn an_instruction_that_changes_an_argument_nobody_reads_is_passed() {
    // mov rsi,rdi; push rbp; ret
    let code = [0x48, 0x89, 0xfe, 0x55, 0xc3];
    assert_eq!(chosen(&code, Signature::Malloc).offset, 3);
    assert_eq!(chosen(&code, Signature::Calloc).offset, 0);
}

#[test]
fn a_return_probe_never_stands_where_rsp_has_moved() {
    // sub rsp,8; call +0; ret
    let code = [0x48, 0x83, 0xec, 0x08, 0xe8, 0, 0, 0, 0, 0xc3];
    assert_eq!(chosen(&code, Signature::Malloc).offset, 0);
    assert_eq!(chosen(&code, Signature::Free).offset, 4, "a free has no return probe");
    // push rbp; push rbx on a kernel that emulates no push
    let site = choose(&[0x55, 0x53, 0x74, 0, 0xc3], AT, Signature::Malloc, OLD).unwrap();
    assert_eq!((site.offset, site.emulated), (0, false));
}

#[test]
fn a_write_to_the_stack_is_not_passed_by_a_return_probe() {
    // mov [rsp],rax; push rbp; ret
    let code = [0x48, 0x89, 0x04, 0x24, 0x55, 0xc3];
    assert_eq!(chosen(&code, Signature::Malloc).offset, 0);
}

#[test]
fn a_site_that_a_loop_jumps_back_to_is_not_taken() {
    // mov eax,1; push rbp; jmp back to the push
    let code = [0xb8, 1, 0, 0, 0, 0x55, 0xeb, 0xfd];
    assert_eq!(chosen(&code, Signature::Malloc).offset, 0);
    // the same without the loop
    let code = [0xb8, 1, 0, 0, 0, 0x55, 0xeb, 0x00, 0xc3];
    assert_eq!(chosen(&code, Signature::Malloc).offset, 5);
}

#[test]
fn nothing_behind_a_call_a_return_or_a_system_call_is_taken() {
    // mov eax,11; syscall; push rbp
    let code = [0xb8, 11, 0, 0, 0, 0x0f, 0x05, 0x55, 0xc3];
    assert_eq!(chosen(&code, Signature::Munmap).offset, 0);
    // call rax (not emulated); push rbp
    assert_eq!(chosen(&[0xff, 0xd0, 0x55, 0xc3], Signature::Malloc).offset, 0);
    assert_eq!(chosen(&[0xc3, 0x55], Signature::Free).offset, 0);
}

#[test]
fn instructions_the_kernel_refuses_are_passed_or_reported() {
    // xchg ax,ax (66 90); push rbp
    let site = chosen(&[0x66, 0x90, 0x55, 0xc3], Signature::Malloc);
    assert_eq!((site.offset, site.emulated), (2, true));
    // cs nopw; ret: refused at the entry, the return can be stood on
    let code = [0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0, 0xc3];
    assert_eq!(chosen(&code, Signature::Malloc).offset, 10);
    // int3 leads nowhere
    let refused = choose(&[0xcc, 0x55], AT, Signature::Malloc, NEW);
    assert_eq!(refused, Err(SiteError::Refused { instruction: "int3".into() }));
}

#[test]
fn a_five_byte_nop_is_a_site_only_where_the_kernel_emulates_it() {
    let code = [0x0f, 0x1f, 0x44, 0, 0, 0x55, 0xc3];
    assert_eq!(chosen(&code, Signature::Malloc).offset, 0);
    let push_only = Emulation { push: true, nop5: false };
    assert_eq!(choose(&code, AT, Signature::Malloc, push_only).unwrap().offset, 5);
}

#[test]
fn bytes_that_are_no_code_are_an_error() {
    assert_eq!(choose(&[], AT, Signature::Free, NEW), Err(SiteError::NoCode));
    assert_eq!(choose(&[0x06], AT, Signature::Free, NEW), Err(SiteError::Undecodable));
    assert_eq!(choose(&[0x48], AT, Signature::Free, NEW), Err(SiteError::Undecodable));
}

#[test]
fn a_tail_jump_is_a_forward() {
    let forward = |code: &[u8], at| super::forward(code, at, Signature::Free);
    assert_eq!(forward(&[0xe9, 0x0b, 0, 0, 0], AT), Some(Forward::Direct(0x1010)));
    // jmp [rip+0x20]
    assert_eq!(forward(&[0xff, 0x25, 0x20, 0, 0, 0], AT), Some(Forward::Slot(0x1026)));
    // mov rsi,rdi; jmp
    assert_eq!(forward(&[0x48, 0x89, 0xfe, 0xe9, 0, 1, 0, 0], AT), Some(Forward::Direct(0x1108)));
    // the block changes on the way, RSP moves, a branch decides, the jump stays inside
    assert_eq!(forward(&[0x48, 0x89, 0xf7, 0xe9, 0, 1, 0, 0], AT), None);
    assert_eq!(forward(&[0x55, 0xe9, 0, 1, 0, 0], AT), None);
    assert_eq!(forward(&[0x74, 0x05, 0xe9, 0, 1, 0, 0], AT), None);
    assert_eq!(forward(&[0xeb, 0x00, 0xc3], AT), None);
    // valloc: mov rsi,rdi; mov edi,4096; jmp memalign
    let valloc = [0x48, 0x89, 0xfe, 0xbf, 0, 0x10, 0, 0, 0xe9, 0, 1, 0, 0];
    assert_eq!(forward(&valloc, AT), None);
    assert_eq!(super::forward(&valloc, AT, Signature::Malloc), Some(Forward::Direct(0x110d)));
}

fn any_signature() -> impl Strategy<Value = Signature> {
    prop::sample::select(vec![
        Signature::Malloc,
        Signature::Calloc,
        Signature::Realloc,
        Signature::PosixMemalign,
        Signature::Free,
        Signature::Mmap,
        Signature::Mremap,
    ])
}

/// Snippets that occur at the head of functions, so that random code is not all undecodable.
fn code() -> impl Strategy<Value = Vec<u8>> {
    let snippet = prop_oneof![
        Just(vec![0x55]),
        Just(vec![0x41, 0x57]),
        Just(vec![0xf3, 0x0f, 0x1e, 0xfa]),
        Just(vec![0x48, 0x89, 0xfb]),
        Just(vec![0x48, 0x89, 0xf7]),
        Just(vec![0x48, 0x83, 0xec, 0x18]),
        Just(vec![0x48, 0x85, 0xff]),
        Just(vec![0x31, 0xc0]),
        Just(vec![0x66, 0x90]),
        (any::<i8>()).prop_map(|rel| vec![0x74, rel as u8]),
        (any::<i8>()).prop_map(|rel| vec![0xeb, rel as u8]),
        prop::collection::vec(any::<u8>(), 1..6),
    ];
    prop::collection::vec(snippet, 0..24).prop_map(|parts| parts.concat())
}

/// The rule, stated again over the whole line from the entry to the site.
fn rule_holds(code: &[u8], signature: Signature, site: &Site) -> Result<(), String> {
    let mut decoder = Decoder::with_ip(64, code, AT, DecoderOptions::NONE);
    let mut info = InstructionInfoFactory::new();
    while (decoder.position() as u64) < site.offset {
        let instruction = decoder.decode();
        let text = disassemble(&instruction);
        if instruction.is_invalid() || instruction.flow_control() != FlowControl::Next {
            return Err(format!("passed `{text}`"));
        }
        for used in info.info(&instruction).used_registers() {
            let register = used.register().full_register();
            let needed = ARGUMENTS[..signature.arguments()].contains(&register)
                || (signature.needs_return() && register == Register::RSP);
            if needed && is_write(used.access()) {
                return Err(format!("`{text}` changes {register:?}"));
            }
        }
    }
    if decoder.position() as u64 != site.offset {
        return Err("the site is inside an instruction".into());
    }
    let lands_inside = Decoder::with_ip(64, code, AT, DecoderOptions::NONE)
        .into_iter()
        .filter(has_near_target)
        .map(|branch| branch.near_branch_target().wrapping_sub(AT))
        .any(|target| target > 0 && target <= site.offset);
    if lands_inside { Err("a branch leads between entry and site".into()) } else { Ok(()) }
}

proptest! {
    #[test]
    fn a_chosen_site_always_satisfies_the_rule(code in code(), signature in any_signature()) {
        for emulation in [NEW, OLD] {
            if let Ok(site) = choose(&code, AT, signature, emulation)
                && let Err(broken) = rule_holds(&code, signature, &site)
            {
                return Err(TestCaseError::fail(broken));
            }
        }
    }

    #[test]
    fn a_dear_site_is_chosen_only_where_no_cheap_one_satisfies_the_rule(
        code in code(),
        signature in any_signature(),
    ) {
        let Ok(chosen) = choose(&code, AT, signature, NEW) else { return Ok(()) };
        if chosen.emulated {
            return Ok(());
        }
        let mut decoder = Decoder::with_ip(64, &code, AT, DecoderOptions::NONE);
        let mut info = InstructionInfoFactory::new();
        let mut stack_untouched = true;
        for _ in 0..=MAX_PASSED {
            let at = decoder.position();
            if !decoder.can_decode() || !stack_untouched {
                break;
            }
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                break;
            }
            let bytes = &code[at..decoder.position()];
            let candidate = site(at, &instruction, true);
            if is_emulated(&instruction, bytes, NEW) && !is_refused(&instruction, bytes) {
                let broken = rule_holds(&code, signature, &candidate);
                prop_assert!(broken.is_err(), "{candidate:?} instead of {chosen:?}");
            }
            stack_untouched = !signature.needs_return() || leaves_stack_alone(&instruction, &mut info);
        }
    }

    #[test]
    fn random_bytes_never_panic(code in prop::collection::vec(any::<u8>(), 0..600), address: u64) {
        let _ = choose(&code, address, Signature::Realloc, NEW);
        let _ = forward(&code, address, Signature::Free);
    }

    #[test]
    fn the_code_behind_a_site_never_makes_it_dearer(code in code(), tail in code()) {
        // Cutting the function after its site changes nothing, unless a cut-off loop led back.
        if let Ok(site) = choose(&code, AT, Signature::Malloc, NEW) {
            let mut longer = code.clone();
            longer.extend(tail);
            if let Ok(other) = choose(&longer, AT, Signature::Malloc, NEW) {
                prop_assert!(other.offset <= site.offset || !site.emulated);
            }
        }
    }
}
