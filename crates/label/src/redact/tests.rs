//! What is found, what only looks like something, and what the command is held to.

use proptest::prelude::*;

use super::*;

const ALL: [Sensitive; 6] = [
    Sensitive::Key,
    Sensitive::Email,
    Sensitive::Iban,
    Sensitive::Card,
    Sensitive::Ip,
    Sensitive::Phone,
];

fn redactor(kinds: &[Sensitive]) -> Redactor {
    let settings = RedactionSettings {
        kinds: kinds.iter().copied().collect(),
        command: None,
    };
    Redactor::of(&settings, None, &Kill::default(), || Ok(BTreeSet::new())).unwrap()
}

fn redact(text: &str) -> String {
    redactor(&ALL).redact(text, &[]).unwrap().query
}

#[test]
fn what_is_something_is_replaced() {
    let pem = "-----BEGIN RSA PRIVATE KEY-----\nMIIBOgIBAAJBAK\n-----END RSA PRIVATE KEY-----";
    let cases = [
        ("mail jo.o'neill+x@mail.example.co.uk.", "mail <EMAIL_1>."),
        (
            "mailto:a@b.de, <A@B.de>;c@b.de",
            "mailto:<EMAIL_1>, <<EMAIL_1>>;<EMAIL_2>",
        ),
        ("jürgen@müller.de", "<EMAIL_1>"),
        ("请联系a@b.com谢谢", "请联系<EMAIL_1>谢谢"),
        ("https://u:p@host.example/x", "https://u:<EMAIL_1>/x"),
        ("first/last=x@example.com", "<EMAIL_1>"),
        (
            "bounce+jo=x.org@b.de, SRS0=a1=b2=x.org=jo@b.de",
            "<EMAIL_1>, <EMAIL_2>",
        ),
        (
            "MAIL_TO=jo@b.de https://b.de/?to=jo@b.de&x //jo@b.de/x",
            "MAIL_TO=<EMAIL_1> https://b.de/?to=<EMAIL_1>&x //<EMAIL_1>/x",
        ),
        ("card 4111 1111 1111 1111 12/27", "card <CARD_1> 12/27"),
        (
            "4111.1111.1111.1111, 4111  1111 1111\u{a0}1111.",
            "<CARD_1>, <CARD_1>.",
        ),
        (
            "4111-1111-1111-1111 or 4111111111111111",
            "<CARD_1> or <CARD_1>",
        ),
        ("amex 3782 822463 10005", "amex <CARD_1>"),
        ("3 x 5555555555554444", "3 x <CARD_1>"),
        (
            "IBAN DE89 3704 0044 0532 0130 00 bitte",
            "IBAN <IBAN_1> bitte",
        ),
        ("(gb29nwbk60161331926819)", "(<IBAN_1>)"),
        ("from 192.168.0.17:8080.", "from <IP_1>:8080."),
        ("host:10.1.2.3, 10.1.2.3/24", "host:<IP_1>, <IP_1>/24"),
        (
            "[2001:db8::1]:443 and 2001:DB8:0:0::1",
            "[<IP_1>]:443 and <IP_1>",
        ),
        ("fe80::1%eth0 or ::ffff:10.0.0.1", "<IP_1>%eth0 or <IP_2>"),
        (
            "Error from 10.0.0.1:8080: refused, see 10.0.0.1.Add more",
            "Error from <IP_1>:8080: refused, see <IP_1>.Add more",
        ),
        (
            "docker run -p 10.0.0.1:8080:80 x, interface:10.0.0.2:80 x",
            "docker run -p <IP_1>:8080:80 x, interface:<IP_2>:80 x",
        ),
        (
            "10.0.0.1:80:10.0.0.2:80 and 10.0.0.1..10.0.0.2",
            "<IP_1>:80:<IP_2>:80 and <IP_1>..<IP_2>",
        ),
        ("from ::ffff:10.0.0.1:8080:", "from ::ffff:<IP_1>:8080:"),
        ("call +49 (0)30 1234-567 now", "call <PHONE_1> now"),
        ("+442071838750;+1 (555) 123-4567", "<PHONE_1>;<PHONE_2>"),
        ("(555) 123-4567 / 1-800-555-0199", "<PHONE_1> / <PHONE_2>"),
        (
            "Büro 030/1234567, 0171 1234567",
            "Büro <PHONE_1>, <PHONE_2>",
        ),
        ("06 12 34 56 78", "<PHONE_1>"),
        ("0049 171 1234567", "<PHONE_1>"),
        ("Tel.: 5550199", "Tel.: <PHONE_1>"),
        ("phone number is 02071838750", "phone number is <PHONE_1>"),
        ("sk-proj-abcDEF0123456789_-xyz!", "<KEY_1>!"),
        (
            "key=ghp_abcdefghijklmnopqrstuvwxyz0123456789",
            "key=<KEY_1>",
        ),
        (
            "TOKEN_ghp_abcdefghijklmnopqrstuvwxyz0123456789",
            "TOKEN_<KEY_1>",
        ),
        ("AKIAIOSFODNN7EXAMPLE", "<KEY_1>"),
        (
            "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln-_x.",
            "Bearer <KEY_1>.",
        ),
        (pem, "<KEY_1>"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEvQ and no end", "<KEY_1>"),
        ("<EMAIL_1> is not a@b.com", "<EMAIL_1> is not <EMAIL_2>"),
    ];
    for (text, expected) in cases {
        assert_eq!(redact(text), expected, "{text}");
    }
}

#[test]
fn what_only_looks_like_something_is_left() {
    for text in [
        "version 1.2.3.4, v1.2.3.4 and Version: 10.0.19041.1",
        "libfoo-1.2.3.4-beta Chrome/120.0.0.0 OID 1.3.6.1.4.1",
        "1.2.3 and 256.1.1.1",
        "release 1.2.3.4:latest, section 1.2.3.4: and Section 1.2.3.4.Add",
        "1.3.6.1.4:80, 1.3.6.1.4.Add, libfoo_1.2.3.4_amd64.deb",
        "0.0.0.0:8080:80, x1.2.3.4:80, 1.2.3.4x:80",
        "10:20:30, 10:20:30.400, 2024.01.02 10:20:30, 01.02.2024:10:20",
        "1.299.000,00 EUR, $4,111.11, 4.111.111.111.111",
        "4111   1111 1111 1111, 4111..1111 1111 1111, 411.1111.1111.11111",
        "4111.1111.1111.1112",
        "ISBN 978.3.16.148410.0, ISBN 978  3 16 148410  0",
        "at 12:30:45, ratio 16:9, aa:bb:cc:dd:ee:ff, std::vec, dead::beef",
        "ISBN 978-3-16-148410-0, ISBN-10: 0-306-40615-2, 0-306-40615-2",
        "ISBN-13: 9783161484100, EAN 4006381333931",
        "order 114-3941689-8772232, order number 0123-456-7890",
        "Bestellung 030 1234567",
        "0123456789 and 1234567890123456",
        "01.02.2024 10:30 until 2024-02-01",
        "4111 1111 1111 1112",
        "uuid 550e8400-e29b-41d4-a716-446655440000",
        "x4111111111111111",
        "GB29 NWBK 6016 1331 9268 18",
        "1 234 567 890 people, 200 300 4000",
        "12 V drill, 0.5 mm, 120 x 60 x 40, 3/4 in, 1-1/2",
        "logo@2x.png, @scope/pkg@1.2.3, a @ b, user@localhost",
        "task-0123456789abcdef0123, sk-learn-contrib-extensions",
        "-----BEGIN CERTIFICATE-----",
        "",
    ] {
        assert_eq!(redact(text), text);
    }
}

#[test]
fn a_value_has_one_number_in_query_and_document() {
    let documents = ["a@x.org wrote to B@x.org", "nobody"].map(String::from);
    let redactor = redactor(&[Sensitive::Email]);
    let shown = redactor.redact("who is b@x.org?", &documents).unwrap();
    assert_eq!(shown.query, "who is <EMAIL_1>?");
    assert_eq!(shown.documents, ["<EMAIL_2> wrote to <EMAIL_1>", "nobody"]);
    let counts = [1, 2].map(|count| Counts::from([("email", count)]));
    assert_eq!(shown.counts, counts);
    let only = self::redactor(&[Sensitive::Ip]).redact("a@x.org at 10.0.0.7", &[]);
    assert_eq!(only.unwrap().query, "a@x.org at <IP_1>");
}

#[test]
fn what_nobody_sees_hides_nothing() {
    for hidden in [
        "jo\u{200b}@x.org",
        "j\u{ad}o@x\u{2060}.org",
        "jo@\u{e0041}x.org",
    ] {
        assert_eq!(redact(hidden), "<EMAIL_1>");
    }
    assert_eq!(redact("4111\u{200d}111111111111"), "<CARD_1>");
}

#[test]
fn no_text_is_too_odd_to_be_read_to_its_end() {
    let pieces = [
        "sk-",
        "eyJ",
        "-----BEGIN ",
        "a.",
        "1 ",
        "1.",
        ".",
        ":",
        "1:",
        "@",
        "a@",
        "<",
        "<IP_1>",
        "+49301234567",
        "((((",
        "DE12",
        "4111 ",
        "0",
        "a@b.com+49301234567sk-a1b2c3d4e5f6g7h8",
    ];
    for piece in pieces {
        // Where each piece was looked at once for each other one, this would not end.
        let text = piece.repeat(100_000 / piece.len()) + " jo@x.org";
        assert!(!redact(&text).contains("jo@x.org"), "{piece}");
    }
}

fn through(command: &[&str], texts: &[&str]) -> Result<Vec<String>> {
    let settings = RedactionSettings {
        kinds: BTreeSet::from([Sensitive::Email]),
        command: Some(command.iter().map(ToString::to_string).collect()),
    };
    let sent = texts.iter().map(ToString::to_string).collect();
    let redactor = Redactor::of(&settings, Some("HOME"), &Kill::default(), || Ok(sent))?;
    let redacted = |text: &&str| Ok(redactor.redact(text, &[])?.query);
    texts.iter().map(redacted).collect()
}

#[test]
fn texts_go_through_a_command_and_then_the_finders() {
    let texts: Vec<String> = (0..20_000).map(|n| format!("Jane a{n}@x.org")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let redacted = through(&["sed", "s/Jane/<NAME>/"], &texts[..]).unwrap();
    assert_eq!(redacted[0], "<NAME> <EMAIL_1>");
    assert_eq!(redacted[19_999], "<NAME> <EMAIL_1>");
    // The command's environment lacks the teacher's key.
    let script = r#"read line; echo "{\"text\": \"home: $HOME\"}""#;
    assert_eq!(through(&["sh", "-c", script], &["x"]).unwrap(), ["home: "]);
}

#[test]
fn a_command_that_does_otherwise_lets_nothing_out() {
    for (command, expected) in [
        (&["no-such-program"][..], "no-such-program"),
        (&["false"], "answered 0 of 2 texts"),
        (&["sh", "-c", "cat; exit 3"], "exit status: 3"),
        (&["head", "-n", "1"], "answered 1 of 2 texts"),
        (
            &["sh", "-c", "cat; echo '{\"text\":\"\"}'"],
            "answered 3 of 2 texts",
        ),
        (
            &["sed", "s/text/txt/"],
            "answered line 1 with something else",
        ),
        (&["sed", "s/secret/\\xff/"], "answered line 1"),
    ] {
        let error = through(command, &["a secret", "b secret"])
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{command:?}: {error}");
        assert!(error.contains("nothing was sent"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

/// Digits with the check digit that makes them a card's number.
fn card() -> impl Strategy<Value = String> {
    let network = prop_oneof![
        Just(("4", 16)),
        Just(("51", 16)),
        Just(("6011", 16)),
        Just(("37", 15)),
        Just(("36", 14))
    ];
    let separators = prop::sample::select(vec!["", " ", "  ", "-", "."]);
    (network, "[0-9]{15}", separators).prop_map(|((prefix, length), random, separator)| {
        let digits = format!("{prefix}{random}");
        let digits = &digits[..length - 1];
        let checked = (0..10)
            .map(|check| format!("{digits}{check}"))
            .find(|digits| {
                let doubled = |(place, digit): (usize, u32)| {
                    let digit = digit * if place % 2 == 1 { 2 } else { 1 };
                    digit / 10 + digit % 10
                };
                let digits = digits.chars().rev().filter_map(|c| c.to_digit(10));
                digits.enumerate().map(doubled).sum::<u32>() % 10 == 0
            });
        let digits = checked.unwrap();
        let blocks: Vec<&str> = (0..digits.len())
            .step_by(4)
            .map(|at| &digits[at..digits.len().min(at + 4)])
            .collect();
        blocks.join(separator)
    })
}

fn iban() -> impl Strategy<Value = String> {
    ("[0-9]{18}", prop::bool::ANY).prop_map(|(account, is_spaced)| {
        // D is 13 and E 14; the check digits make the whole 1 by 97.
        let rest = format!("{account}131400")
            .bytes()
            .fold(0, |rest, digit| (rest * 10 + u32::from(digit - b'0')) % 97);
        let iban = format!("DE{:02}{account}", 98 - rest);
        let blocks: Vec<&str> = (0..22)
            .step_by(4)
            .map(|at| &iban[at..22.min(at + 4)])
            .collect();
        blocks.join(if is_spaced { " " } else { "" })
    })
}

fn planted() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z][a-z0-9._+]{0,10}[a-z0-9]@[a-z]{1,8}\\.(com|co\\.uk|org)",
        "[a-z]{1,5}/[a-z]{1,5}=[a-z]{1,5}@[a-z]{1,8}\\.(com|co\\.uk|org)",
        card(),
        iban(),
        prop::array::uniform4(1_u8..=254).prop_map(|octets| IpAddr::from(octets).to_string()),
        prop::array::uniform16(1_u8..=255).prop_map(|octets| IpAddr::from(octets).to_string()),
        "\\+[1-9][0-9]{0,2}( |-)?[0-9]{2,4}( |-)?[0-9]{5,7}",
        "\\([2-9][0-9]{2}\\) [0-9]{3}-[0-9]{4}",
        "sk-[A-Za-z0-9]{10}[0-9][A-Za-z0-9]{20}",
        "gh[pousr]_[A-Za-z0-9]{36}",
        "AKIA[A-Z2-7]{16}",
        "eyJ[A-Za-z0-9_-]{20}\\.eyJ[A-Za-z0-9_-]{20}\\.[A-Za-z0-9_-]{20}",
    ]
}

/// What may stand around it: no letters of the words that change what a number is.
fn around() -> impl Strategy<Value = String> {
    "[a-hj-lqwxyzß中 0-9@:/,.+()\n-]{0,30}"
}

proptest! {
    #[test]
    fn nothing_that_was_planted_is_left(
        (before, planted, after) in (around(), planted(), around()),
        (left, right) in ("[ \n\",]", "[ \n\",;]"),
    ) {
        let text = format!("{before}{left}{planted}{right}{after}");
        let redacted = redact(&text);
        prop_assert!(!redacted.contains(&planted), "{text:?} became {redacted:?}");
    }

    #[test]
    fn redacting_twice_changes_nothing(
        (before, planted, after) in ("\\PC{0,30}", planted(), around()),
    ) {
        let once = redact(&format!("{before} {planted}{after}"));
        prop_assert_eq!(redact(&once), once);
    }

    #[test]
    fn texts_without_any_are_left_as_they_are(text in "[\\p{L} ,;.!?'\"\n]{0,80}") {
        prop_assert_eq!(redact(&text), text);
    }
}
