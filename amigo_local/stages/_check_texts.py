"""Texts that tokenizers and weights are checked on: code, many scripts, emoji, odd spaces."""

CHECKED_TEXTS = 1000  # of weights/check_texts.py, tokenized on both sides with every unpack and export

TEXTS = (
    "Write a Python function that returns the n-th Fibonacci number.",
    "def quicksort(items):\n    if len(items) <= 1:\n        return items\n    pivot = items[0]\n",
    "The capital of France is",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i] * 0x1F;\n}\n",
    "SELECT name, COUNT(*) FROM users GROUP BY name HAVING COUNT(*) > 1;",
    "Once upon a time, in a small village by the sea,",
    "Grüße aus Köln — naïve café, 10 000 €",
    "Привет, мир! Как дела?",
    "你好，世界。今天天气怎么样？",
    "こんにちは、世界。プログラムを書いてください。",
    "안녕하세요, 세계!",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "👩‍💻🚀 emoji 👍🏽 and ZWJ 👨‍👩‍👧",
    "        eight spaces\n\n\n\ttab\t\ttabs   ",
    "1234567890 3.14159 1e-10 0b1010 1_000_000",
    "don't can't WON'T I'll we've it's",
    '<html><body class="a b">&nbsp;</body></html>',
    '{\'key\': [1, 2, 3], "nested": {"a": null}}',
    "x" * 60 + " " * 40 + "=" * 30,
)
