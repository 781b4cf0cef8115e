use super::*;

#[test]
fn the_configuration_space_holds_the_tag_and_one_queue() {
    assert!(matches!(config_space(""), Err(FsError::Tag(_, 0))));
    assert!(matches!(config_space(&"x".repeat(37)), Err(FsError::Tag(_, 37))));
    let space = config_space("share").unwrap();
    assert_eq!(&space[..6], b"share\0");
    assert_eq!(&space[6..], [&[0; 30][..], &[1, 0, 0, 0]].concat());
    assert_eq!(config_space(&"x".repeat(36)).unwrap()[..36], [b'x'; 36]);
}
