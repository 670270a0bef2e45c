//! glibc keeps freed memory for the thread that freed it, and a process that loaded something large stays large. This gives
//! it back. The one place with `unsafe`: everything else forbids it.

/// Gives freed memory back to the system. Walks the whole heap, a few milliseconds for some hundred megabytes, and locks
/// each part of it on the way: not for a thread that serves requests. Does nothing where the allocator is not glibc's.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: the signature is that of malloc_trim(3), which may be called from any thread at any time and touches
        // only memory that is free. It returns whether there was any, which changes nothing.
        unsafe { malloc_trim(0) };
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    fn resident_pages() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn what_was_freed_goes_back() {
        // Small enough to come from the heap; the last one keeps the heap's end in use.
        let mut pieces: Vec<_> = (0..4_096).map(|_| vec![1_u8; 16 << 10]).collect();
        let last = pieces.pop();
        drop(pieces);
        let before = resident_pages();
        super::trim();
        assert!(
            resident_pages() + 8_192 < before,
            "64 MB were freed, and {} pages of {before} are left",
            resident_pages()
        );
        drop(last);
    }
}
