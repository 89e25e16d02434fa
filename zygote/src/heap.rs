//! The memory of a zygote that workers read most, and its move into a file.
//!
//! A fork copies the page tables of anonymous memory, and of every mapping that a process has ever written to. For a private
//! mapping of a file that the process has not written to since, there is nothing to copy, and the first write of a worker
//! to a page is cheaper too: together, a tenth of the CPU time of a request with pandas. So, once its imports are done, the
//! zygote writes its memory to files in memory, seals the files, and maps them in place. From then on it runs the loop
//! only, which writes to few pages.
//!
//! Three kinds of memory move: what malloc(3) has from brk(2) since the harness started; the arenas that Python has made
//! since then, for which this crate is the
//! [allocator](https://docs.python.org/3/c-api/memory.html#customize-pymalloc-arena-allocator); and the variables of the
//! program and its libraries. They keep the protection that they have when they are made, so a library that changes the
//! protection of a part of its own variables or of the heap cannot be preloaded. Other memory stays: an allocator may grow
//! it with mremap(2) or clear it with MADV_DONTNEED, and neither has the same effect on a mapped file.

/// The size of the arenas that are known, bytes: those of Python 3.10 and newer on computers with 64 bits.
pub const ARENA_BYTES: usize = 1 << 20;
/// The most arenas that are known. Further ones stay where they are.
const MOST: usize = 1024;

/// The arenas of a zygote. All zero at first.
#[derive(Debug)]
#[repr(C)]
pub struct Arenas {
    /// Whether no more are noted. Workers would only copy a page for it.
    is_closed: bool,
    number: usize,
    addresses: [usize; MOST],
}

impl Arenas {
    /// Notes a new arena.
    pub fn add(&mut self, address: usize, bytes: usize) {
        if self.is_closed || bytes != ARENA_BYTES {
            return;
        }
        if let Some(place) = self.addresses.get_mut(self.number) {
            *place = address;
            self.number += 1;
        }
    }

    /// Forgets an arena that is freed.
    pub fn remove(&mut self, address: usize) {
        if self.is_closed {
            return;
        }
        let last = self.number.checked_sub(1).and_then(|last| self.addresses.get(last)).copied();
        let place = self.addresses.iter_mut().take(self.number).find(|known| **known == address);
        if let (Some(place), Some(last)) = (place, last) {
            *place = last;
            self.number -= 1;
        }
    }

    /// Returns the next arena above an address. In this order, arenas that touch each other become one mapping.
    pub fn next_above(&self, address: usize) -> Option<usize> {
        self.addresses.iter().take(self.number).copied().filter(|arena| *arena > address).min()
    }

    /// Notes no more arenas.
    pub fn close(&mut self) {
        self.is_closed = true;
    }
}

/// The most regions that move. Those of Python and pandas are 350.
const MOST_REGIONS: usize = 2048;
/// The largest region, bytes. Larger memory is several regions.
const MOST_REGION_BYTES: usize = 1 << 20;
/// How much is in one file, bytes. Until a file is mapped, its memory is in use twice.
const FILE_BYTES: usize = 32 << 20;
/// The largest variables of a library that move, bytes. Larger ones are mostly tables that are still zero, and would need
/// memory then.
const MOST_VARIABLE_BYTES: usize = 4 << 20;

/// A range of memory that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its address.
    pub start: usize,
    /// Its size.
    pub bytes: usize,
    /// Whether it may be written to. Variables that the linker has filled in may not.
    pub is_writable: bool,
}

/// The regions that move.
#[derive(Debug)]
pub struct Regions {
    number: usize,
    places: [Region; MOST_REGIONS],
    page_bytes: usize,
    stays: usize,
}

/// A program header of an ELF file with 64 bits: `Elf64_Phdr` of elf.h.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct ProgramHeader {
    /// What it describes.
    pub kind: u32,
    /// [`PF_X`] and [`PF_W`].
    pub flags: u32,
    /// The offset in the file.
    pub offset: usize,
    /// The address, relative to that of the object.
    pub address: usize,
    /// Has no meaning.
    pub physical_address: usize,
    /// The size in the file.
    pub file_bytes: usize,
    /// The size in memory.
    pub bytes: usize,
    /// The alignment.
    pub alignment: usize,
}

/// A part of the file that is in memory.
pub const PT_LOAD: u32 = 1;
/// The variables that are filled in when the object is loaded, and then protected.
pub const PT_GNU_RELRO: u32 = 0x6474_e552;
/// The part is executable.
pub const PF_X: u32 = 1;
/// The part is writable.
pub const PF_W: u32 = 2;

impl Regions {
    /// No region. `page_bytes` is the size of a page. `stays` is an address in the library whose variables stay: the C
    /// library, which is also the loader with musl, and then does not protect its own variables.
    pub fn new(page_bytes: usize, stays: usize) -> Regions {
        let none = Region { start: 0, bytes: 0, is_writable: false };
        Regions { number: 0, places: [none; MOST_REGIONS], page_bytes, stays }
    }

    /// The regions that go into one file, if as many as `before` are already in others. None if there are no more.
    pub fn for_one_file(&self, before: usize) -> &[Region] {
        let all = self.places.get(before..self.number).unwrap_or_default();
        let mut bytes = 0;
        let fits = all.iter().take_while(|region| {
            bytes += region.bytes;
            bytes <= FILE_BYTES
        });
        all.get(..fits.count()).unwrap_or_default()
    }

    /// Adds the memory between two addresses, as far as there are places for it.
    pub fn add(&mut self, start: usize, end: usize, is_writable: bool) {
        let mut next = start;
        while next < end {
            let Some(place) = self.places.get_mut(self.number) else { return };
            let bytes = MOST_REGION_BYTES.min(end - next);
            *place = Region { start: next, bytes, is_writable };
            self.number += 1;
            next += bytes;
        }
    }

    /// Adds what lies on the heap: the whole pages between two addresses.
    pub fn add_heap(&mut self, start: usize, end: usize) {
        self.add(self.page_after(start), self.page_of(end), true);
    }

    /// Adds the variables of a program or library that is loaded at an address.
    pub fn add_variables(&mut self, address: usize, headers: &[ProgramHeader]) {
        let contains = |header: &ProgramHeader| {
            let start = address.wrapping_add(header.address);
            header.kind == PT_LOAD && (start..start + header.bytes).contains(&self.stays)
        };
        if headers.iter().any(contains) {
            return;
        }
        let protected = headers.iter().find(|header| header.kind == PT_GNU_RELRO);
        // The linker protects whole pages only.
        let protected = protected.map(|header| {
            let start = address.wrapping_add(header.address);
            (self.page_of(start), self.page_of(start + header.bytes))
        });
        let is_moved = |header: &&ProgramHeader| {
            header.kind == PT_LOAD
                && header.flags & (PF_W | PF_X) == PF_W
                && header.bytes <= MOST_VARIABLE_BYTES
        };
        for header in headers.iter().filter(is_moved) {
            let start = address.wrapping_add(header.address);
            let end = self.page_after(start + header.bytes);
            let start = self.page_of(start);
            match protected {
                Some((first, last)) if first == start && last <= end => {
                    self.add(first, last, false);
                    self.add(last, end, true);
                }
                // Somewhere else in it. Rare, and the memory may as well stay.
                Some((first, last)) if first < end && start < last => {}
                _ => self.add(start, end, true),
            }
        }
    }

    /// The address of the page that an address lies in.
    fn page_of(&self, address: usize) -> usize {
        address & !(self.page_bytes - 1)
    }

    /// The first address of a page that is not before an address.
    fn page_after(&self, address: usize) -> usize {
        self.page_of(address + self.page_bytes - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn arenas_are_noted_in_any_order_and_listed_by_address() {
        let mut arenas = Arenas { is_closed: false, number: 0, addresses: [0; MOST] };
        for address in [0x50_0000, 0x20_0000, 0x40_0000, 0x30_0000] {
            arenas.add(address, ARENA_BYTES);
        }
        arenas.add(0x60_0000, 2 * ARENA_BYTES);
        arenas.remove(0x20_0000);
        arenas.remove(0x70_0000);
        arenas.close();
        arenas.add(0x10_0000, ARENA_BYTES);
        arenas.remove(0x30_0000);
        let listed = core::iter::successors(arenas.next_above(0), |last| arenas.next_above(*last));
        assert!(listed.eq([0x30_0000, 0x40_0000, 0x50_0000]));
    }

    const ADDRESS: usize = 0x7f00_0000_0000;

    fn header(kind: u32, flags: u32, address: usize, bytes: usize) -> ProgramHeader {
        ProgramHeader { kind, flags, address, bytes, ..ProgramHeader::default() }
    }

    fn variables(headers: &[ProgramHeader]) -> Vec<(usize, usize, bool)> {
        let mut regions = Regions::new(4096, ADDRESS + 0x30000);
        regions.add_variables(ADDRESS, headers);
        let regions = regions.places.iter().take(regions.number);
        regions
            .map(|Region { start, bytes, is_writable }| (start - ADDRESS, *bytes, *is_writable))
            .collect()
    }

    #[test]
    fn the_variables_of_a_library_move_in_whole_pages_with_their_protection() {
        let code = header(PT_LOAD, PF_X, 0, 0x9000);
        let data = header(PT_LOAD, PF_W, 0xadb0, 0x4000);
        let relro = header(PT_GNU_RELRO, 0, 0xadb0, 0x1250);
        assert_eq!(variables(&[code, data]), [(0xa000, 0x5000, true)]);
        assert_eq!(
            variables(&[code, data, relro]),
            [(0xa000, 0x2000, false), (0xc000, 0x3000, true)]
        );
        // Everything is protected.
        let all = header(PT_GNU_RELRO, 0, 0xadb0, 0x4250);
        assert_eq!(variables(&[data, all]), [(0xa000, 0x5000, false)]);
        // No page is protected as a whole.
        let small = header(PT_GNU_RELRO, 0, 0xadb0, 0x100);
        assert_eq!(variables(&[data, small]), [(0xa000, 0x5000, true)]);
        // With an own segment for what is protected.
        let other = header(PT_LOAD, PF_W, 0x20010, 0x100);
        assert_eq!(
            variables(&[data, all, other]),
            [(0xa000, 0x5000, false), (0x20000, 0x1000, true)]
        );
    }

    #[test]
    fn unusual_variables_stay() {
        let executable = header(PT_LOAD, PF_W | PF_X, 0xa000, 0x4000);
        let large = header(PT_LOAD, PF_W, 0x40000, MOST_VARIABLE_BYTES + 1);
        let data = header(PT_LOAD, PF_W, 0xa000, 0x4000);
        let in_the_middle = header(PT_GNU_RELRO, 0, 0xb000, 0x1000);
        assert_eq!(variables(&[executable, large]), []);
        // Those of the C library.
        let code = header(PT_LOAD, PF_X, 0x30000, 0x9000);
        assert_eq!(variables(&[data, code]), []);
        assert_eq!(variables(&[data, in_the_middle]), []);
    }

    #[test]
    fn the_heap_moves_in_whole_pages() {
        let mut regions = Regions::new(65536, 0);
        regions.add_heap(0x10001, 0x4ffff);
        regions.add_heap(0x10001, 0x1ffff);
        let moved = [Region { start: 0x20000, bytes: 0x20000, is_writable: true }];
        assert_eq!(regions.for_one_file(0), moved);
    }

    #[test]
    fn large_memory_is_many_regions_and_several_files() {
        const MB: usize = 1 << 20;
        let mut regions = Regions::new(4096, 0);
        regions.add_heap(MB, 34 * MB + 4096);
        regions.add(50 * MB, 82 * MB, true);
        let sizes = |before| -> Vec<_> {
            let regions = regions.for_one_file(before).iter();
            regions.map(|region| (region.start / MB, region.bytes)).collect()
        };
        let file = |start: usize, regions| (start..start + regions).map(|start| (start, MB));
        assert_eq!(sizes(0), file(1, 32).collect::<Vec<_>>());
        let second: Vec<_> = file(33, 1).chain([(34, 4096)]).chain(file(50, 30)).collect();
        assert_eq!(sizes(32), second);
        assert_eq!(sizes(64), file(80, 2).collect::<Vec<_>>());
        assert_eq!(sizes(66), []);
    }

    #[test]
    fn a_full_table_leaves_further_arenas_where_they_are() {
        let mut arenas = Arenas { is_closed: false, number: 0, addresses: [0; MOST] };
        (1..=MOST + 5).for_each(|number| arenas.add(number * ARENA_BYTES, ARENA_BYTES));
        assert_eq!(arenas.number, MOST);
        assert_eq!(arenas.next_above(MOST * ARENA_BYTES), None);
    }
}
