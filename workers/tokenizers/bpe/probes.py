"""Texts that engines have been seen, or may be expected, to disagree on. Data only.

Run through the fast and the reference engine at every start; also what the conformance suite
feeds text tokenizers. Scripts, white space runs, emoji sequences, controls, digits, long words,
code, line ends, look-alikes of special tokens, and code points young in Unicode.
"""

from __future__ import annotations

_SCRIPTS = (
    "The quick brown fox jumps over the lazy dog, doesn't it? I'LL say we've SEEN 'em.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. ÀÉÎÕÜ ß ﬁ",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία.",
    "نص حكيم له سر قاطع وذو شأن عظيم ١٢٣٤٥٦٧",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा १२३",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。",
    "いろはにほへと ちりぬるを。カタカナﾊﾝｶｸ",
    "키스의 고유조건은 입술끼리 만나야 하고 각각",
    "ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ Ꭰ Ꮳ Ⴀ ა ⴀ 𐐀 𞤀 𝔘𝔫𝔦 𒀀 𓀀",
    "ภาษา မြန်မာ ខ្មែរ ལྷ་ས አማርኛ தமிழ் ಕನ್ನಡ",
)
_SPACES = (
    "",
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\r",
    "a b  c   d    e",
    "a \n b \n\n  c\r\n\r\n d \t\te",
    "trailing   ",
    "   leading",
    "trailing newline\n",
    "x\n \n  \n   \n",
    " \u00a0\u2003\u3000\u2028\u2029\u0085\u1680\u202f\u205f \ufeff x\u200b\u200c\u200d\u2060",
    "\x0b\x0c\x1c\x1d\x1e\x1f x\x0b y\x0c\n z",
    "\n" * 70 + " " * 300 + "x" + "\t" * 40,
)
_MARKS = (
    "é e\u0301 e\u0301\u0301\u0301 \u0301 a\u030a\u0327",
    "👍🏽 👩‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️ 😀😀😀 🏴\U000e0067\U000e0062\U000e007f ☃",
    "\x00 \x01\x02 a\x00b \x7f\x80\x9f\xad",
    "\ufffd\ufffe\uffff \U0010ffff \ue000 \U000f0000",
    "\U0001e030 \U00010d4a \U0001c400 \U00016d40 \u1c89 \ua7cb \U0002ebf0 \U000323b0 \U0001fae9",
    "ǅ ŉ ʰ ª º ǈ Ⅷ ² ½ ⑦ ৴ 𝟘𝟙𝟚 ㈠",
)
_FIGURES = (
    "0 1 12 123 1234 12345 123456789012345678901234567890 3.14159 1,000,000 0x7f 1e-9",
    "2024-02-29T23:59:59Z +49 (30) 1234-5678 $99.99 50% v1.2.3",
    "!!! ??? ... --- === ___ *** /// \\\\\\ <<<>>> (((((((())))))))",
)
_CODE = (
    "def f(x):\n    return {'a': [1, 2.0, None], **x}  # don't\n\n\nclass A(B):\n\tpass\n",
    'for(int i=0;i<n;++i){\r\n\tprintf("%d\\n", a[i]);\r\n}\r\n',
    '<p class="x">&nbsp;</p>\n<!-- c -->\n\n{"k": "\\u00e9", "n": -1.5e+10}',
    "https://example.org/a/b?c=d&e=%20#f user@example.org snake_case camelCase HTTPServer2",
    "L'été d'Été can'T WE'LL 'tis 's 'S 're' ''ll I'd've",
    "'ſ ё'ſ'lld ſ 'K",
)
_LOOK_ALIKES = (
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|> c",
    "<|endoftext|",
    "<s>hello</s> <unk> <pad> [CLS] [SEP] [MASK] <bos> <eos> <0x0A>",
    "<|im_start|>user\nhi<|im_end|>\n<|begin_of_text|><|fim_prefix|>x<|endofprompt|>",
    "▁under ▁▁ Ġspace Ċ",
)
_LONG = (
    "a" * 300,
    "abcdefghijklmnopqrstuvwxyz" * 20,
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "長" * 200,
    "😀" * 100,
    "=" * 200 + "\n" + "-" * 101,
    "ab " * 200,
)

PROBES: tuple[str, ...] = (
    *_SCRIPTS,
    *_SPACES,
    *_MARKS,
    *_FIGURES,
    *_CODE,
    *_LOOK_ALIKES,
    *_LONG,
)

# Single code points that regex libraries class differently (white space or not, a letter or not
# yet, an s in another case or not), each set between letters, digits, spaces and apostrophes.
SUSPECTS = (
    "\u017f\u180e\u212a\u0130\u0131\x1c\x1d\x1e\x1f\x85\xa0\xad\u1680"
    "\u200b\u200c\u200d\u2028\u2029\u202f\u205f\u3000\ufeff"
)


def around(char: str) -> tuple[str, ...]:
    """Texts in which the class of one code point decides where text is cut."""
    return (
        f"a{char}a1{char}1 {char} {char}{char}",
        f"  {char}word {char}\n{char}",
        f"\n{char} x{char}  y",
        f"a'{char}'lld {char}'s '{char}e {char}'ll",
        f"{char}",
    )
