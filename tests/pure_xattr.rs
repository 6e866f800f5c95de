// SPDX-License-Identifier: MIT OR Apache-2.0
//! Extended attributes in the daemon's side of the maps.

use std::time::Duration;

use extfuse::abi::{NodeId, XattrClass};
use extfuse::ebpf::row::xattr_class;
use extfuse::ebpf::{Absent, Cache, Key, Validity};

const NODE: NodeId = NodeId(7);
const OTHER: NodeId = NodeId(8);
const ALWAYS: Validity = Validity::UntilChanged;
const NODATA: Option<Result<Vec<u8>, i32>> = Some(Err(libc::ENODATA));

fn value(bytes: &[u8]) -> Option<Result<Vec<u8>, i32>> {
    Some(Ok(bytes.to_vec()))
}

fn publish_names(cache: &Cache, nodeid: Option<NodeId>, names: &[u8], listed: bool) {
    let absent = Absent::all(libc::ENODATA);
    cache.publish_xattr_names(nodeid, names, absent, listed, cache.snapshot(), ALWAYS);
}

fn publish(cache: &Cache, name: &[u8], value: Result<&[u8], i32>) {
    cache.publish_xattr(NODE, name, value, cache.snapshot(), ALWAYS);
}

#[test]
fn classes_are_of_names_that_have_to_be_listed() {
    let cases: [(&[u8], Option<XattrClass>); 10] = [
        (b"user.a", Some(XattrClass::EXTFUSE_XATTR_USER)),
        (b"trusted.a", Some(XattrClass::EXTFUSE_XATTR_TRUSTED)),
        (b"security.capability", Some(XattrClass::EXTFUSE_XATTR_CAPABILITY)),
        (b"security.capability2", None),
        (b"security.selinux", Some(XattrClass::EXTFUSE_XATTR_SELINUX)),
        (b"security.selinux2", None),
        (b"system.posix_acl_access", Some(XattrClass::EXTFUSE_XATTR_ACL)),
        (b"system.posix_acl_default", Some(XattrClass::EXTFUSE_XATTR_ACL)),
        (b"system.other", None),
        (b"userland", None),
    ];
    for (name, class) in cases {
        assert_eq!(xattr_class(name), class, "{name:?}");
    }
}

#[test]
fn the_names_of_a_node_tell_what_it_lacks() {
    let cache = Cache::in_memory();
    assert_eq!(cache.xattr(NODE, b"user.a"), None);
    publish_names(&cache, Some(NODE), b"user.b\0", true);
    assert_eq!(cache.xattr(NODE, b"user.a"), NODATA);
    assert_eq!(cache.xattr(NODE, b"system.posix_acl_access"), NODATA);
    assert_eq!(cache.xattr(NODE, b"user.b"), None);
    assert_eq!(cache.xattr(NODE, b"security.selinux"), NODATA);
    assert_eq!(cache.xattr(NODE, b"security.ima"), None);
    assert_eq!(cache.xattr(OTHER, b"user.a"), None);
    assert_eq!(cache.xattr_list(NODE).as_deref(), Some(&b"user.b\0"[..]));
    publish(&cache, b"user.b", Ok(b"value"));
    assert_eq!(cache.xattr(NODE, b"user.b"), value(b"value"));
    publish_names(&cache, Some(NODE), b"trusted.b\0", false);
    assert_eq!(cache.xattr_list(NODE), None);
}

#[test]
fn classes_of_which_nothing_is_known_are_asked() {
    let cache = Cache::in_memory();
    let absent = Absent::UNKNOWN
        .with(XattrClass::EXTFUSE_XATTR_USER, libc::ENODATA)
        .with(XattrClass::EXTFUSE_XATTR_ACL, libc::EOPNOTSUPP)
        .with(XattrClass::EXTFUSE_XATTR_TRUSTED, 1000);
    cache.publish_xattr_names(Some(NODE), b"", absent, true, cache.snapshot(), ALWAYS);
    assert_eq!(cache.xattr(NODE, b"user.a"), NODATA);
    assert_eq!(
        cache.xattr(NODE, b"system.posix_acl_default"),
        Some(Err(libc::EOPNOTSUPP))
    );
    assert_eq!(cache.xattr(NODE, b"trusted.a"), None);
    assert_eq!(cache.xattr(NODE, b"security.capability"), None);
}

#[test]
fn what_is_said_of_every_node_ends_with_a_change_of_any() {
    let cache = Cache::in_memory();
    for end in [
        Key::Xattr(OTHER),
        Key::Node(OTHER),
        Key::All,
        Key::Xattr(NodeId(0)),
    ] {
        publish_names(&cache, None, b"", true);
        assert_eq!(cache.xattr(NODE, b"user.a"), NODATA);
        assert_eq!(cache.xattr_list(OTHER), Some(vec![]));
        cache.invalidate(&[Key::Attr(NODE), Key::Data(NODE)]);
        assert_eq!(cache.xattr(NODE, b"user.a"), NODATA);
        cache.invalidate(&[end]);
        assert_eq!(cache.xattr(NODE, b"user.a"), None, "{end:?}");
        assert_eq!(cache.xattr_list(OTHER), None, "{end:?}");
    }
}

#[test]
fn each_invalidation_takes_what_it_names() {
    let cache = Cache::in_memory();
    let cases = [
        (Key::Xattr(NODE), true),
        (Key::Node(NODE), true),
        (Key::All, true),
        (Key::Attr(NODE), false),
        (Key::Data(NODE), false),
        (Key::Xattr(OTHER), false),
    ];
    for (key, taken) in cases {
        publish_names(&cache, Some(NODE), b"user.b\0", true);
        publish(&cache, b"user.b", Ok(b"value"));
        publish(&cache, b"security.ima", Err(libc::ENODATA));
        cache.invalidate(&[key]);
        for name in [&b"user.a"[..], b"user.b", b"security.ima"] {
            assert_eq!(cache.xattr(NODE, name).is_none(), taken, "{name:?} after {key:?}");
        }
        assert_eq!(cache.xattr_list(NODE).is_none(), taken, "{key:?}");
        let change = cache.change(&[key]);
        publish(&cache, b"user.b", Ok(b"value"));
        assert_eq!(cache.xattr(NODE, b"user.b").is_none(), taken, "during {key:?}");
        drop(change);
    }
}

#[test]
fn a_write_takes_capabilities_and_leaves_their_absence() {
    let cache = Cache::in_memory();
    publish(&cache, b"security.capability", Ok(b"all"));
    publish(&cache, b"user.a", Ok(b"a"));
    publish_names(&cache, Some(NODE), b"user.a\0security.capability\0", true);
    assert_eq!(cache.xattr(NODE, b"security.capability"), value(b"all"));
    cache.invalidate_data(NODE);
    assert_eq!(cache.xattr(NODE, b"security.capability"), None);
    assert_eq!(cache.xattr_list(NODE), None);
    assert_eq!(cache.xattr(NODE, b"user.a"), value(b"a"));
    publish_names(&cache, Some(NODE), b"user.a\0", true);
    cache.invalidate_data(NODE);
    assert_eq!(cache.xattr(NODE, b"security.capability"), NODATA);
}

#[test]
fn what_no_row_holds_is_refused() {
    let cache = Cache::in_memory();
    publish(&cache, b"user.a", Ok(&[1; 129]));
    publish(&cache, &[b'n'; 73], Ok(b"a"));
    publish(&cache, b"", Ok(b"a"));
    publish(&cache, b"user.a", Err(0));
    publish(&cache, b"user.a", Err(256));
    publish_names(&cache, Some(NODE), &[b'n'; 201], true);
    publish_names(&cache, Some(NodeId(0)), b"", true);
    cache.publish_xattr(NodeId(0), b"user.a", Ok(b"a"), cache.snapshot(), ALWAYS);
    let published = cache.published();
    assert_eq!((published.rows, published.refused), (0, 8));
    publish(&cache, &[b'n'; 72], Ok(&[1; 128]));
    assert_eq!(cache.xattr(NODE, &[b'n'; 72]), value(&[1; 128]));
    publish_names(&cache, Some(NODE), &[b'n'; 200], true);
    assert_eq!(cache.xattr_list(NODE).unwrap().len(), 200);
}

#[test]
fn rows_expire_and_without_validity_there_are_none() {
    let cache = Cache::in_memory();
    let at = cache.snapshot();
    cache.publish_xattr(NODE, b"user.a", Ok(b"a"), at, Validity::For(Duration::ZERO));
    assert_eq!(cache.xattr(NODE, b"user.a"), None);
    cache.publish_xattr(
        NODE,
        b"user.a",
        Ok(b"a"),
        at,
        Validity::For(Duration::from_millis(50)),
    );
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(cache.xattr(NODE, b"user.a"), None);
    cache.publish_xattr(
        NODE,
        b"user.a",
        Ok(b"a"),
        at,
        Validity::For(Duration::from_secs(3600)),
    );
    assert_eq!(cache.xattr(NODE, b"user.a"), value(b"a"));
}
