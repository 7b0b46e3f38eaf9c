use super::*;

proptest::proptest! {
    #[test]
    fn any_text_is_an_option_or_an_error(text in "[a-e{}\\[\\]\":,.=0-9 -]{0,64}") {
        let _ = BlockdevOptions::parse(&text);
        let _ = ExportOptions::parse(&text);
        let _ = ObjectOptions::parse(&text);
        let _ = MonitorOptions::parse(&text);
        let _ = ChardevOptions::parse(&text);
    }
}
