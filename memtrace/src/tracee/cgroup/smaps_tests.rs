use super::*;

const TWO: &str = "\
7f0000000000-7f0000100000 rw-p 00000000 00:00 0 \n\
Size:               1024 kB\n\
KernelPageSize:        4 kB\n\
Rss:                 512 kB\n\
Pss:                 256 kB\n\
Private_Clean:         4 kB\n\
Private_Dirty:       500 kB\n\
Anonymous:           512 kB\n\
LazyFree:              8 kB\n\
AnonHugePages:         0 kB\n\
Shared_Hugetlb:        0 kB\n\
Private_Hugetlb:    2048 kB\n\
Swap:                 16 kB\n\
VmFlags: rd wr mr mw me nh ac \n\
7ffda3127000-7ffda3148000 rw-p 00000000 00:00 0                          [stack]\n\
Rss:                  12 kB\n\
VmFlags: rd wr mr mw me gd ac \n";

#[test]
fn fields_are_of_the_mapping_above_them() {
    let (mappings, lost) = parse_smaps(TWO.as_bytes());
    assert_eq!((mappings.len(), lost), (2, 0));
    let first = &mappings[0];
    assert_eq!((first.start, first.end), (0x7f00_0000_0000, 0x7f00_0010_0000));
    assert_eq!((first.rss, first.pss, first.anonymous), (512 << 10, 256 << 10, 512 << 10));
    assert_eq!((first.lazy_free, first.swap, first.hugetlb), (8 << 10, 16 << 10, 2 << 20));
    assert!(first.no_huge_page && !mappings[1].no_huge_page);
    assert_eq!((mappings[1].name.as_str(), mappings[1].rss), ("[stack]", 12 << 10));
}

#[test]
fn a_damaged_mapping_takes_its_fields_with_it_and_is_counted() {
    let damaged = TWO.replace("7ffda3127000-7ffda3148000", "7ffda3127000+7ffda3148000");
    let (mappings, lost) = parse_smaps(damaged.as_bytes());
    assert_eq!((mappings.len(), lost), (1, 1));
    assert_eq!(mappings[0].rss, 512 << 10);
    assert_eq!(parse_smaps(b"\xff\xfe\nRss: 1 kB\n").1, 1);
    assert_eq!(parse_smaps(b"").0.len(), 0);
}

#[test]
fn a_rollup_without_rss_is_none_and_fields_of_newer_kernels_are_optional() {
    assert_eq!(parse_rollup(""), None);
    assert_eq!(parse_rollup("55af843da000-7ffdb3a7e000 ---p 00000000 00:00 0 [rollup]\n"), None);
    let old = parse_rollup("Rss:  10 kB\nPss: 5 kB\nAnonymous: 4 kB\n").unwrap();
    assert_eq!((old.rss, old.pss, old.anonymous, old.pss_anon), (10240, 5120, 4096, None));
    let new = parse_rollup("Rss:  10 kB\nPss_Anon: 4 kB\n").unwrap();
    assert_eq!(new.pss_anon, Some(4096));
}
