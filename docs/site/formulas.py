"""The formulas of the pages, written as plain text, to MathML, which a browser sets by itself.

A page says `s_T = softmax(z / T)`, and so does the code; the site shows the same line typeset.
Nothing is moved: a fraction stays a slash, and names stay the names of the code, so what a reader
copies from the site is what stands in the page.  Only these signs change:

    x_ri  x^T  x^(t-i)       a subscript, a superscript (its parentheses go)
    sum  sqrt(x)  floor(x)   the sum sign, the root, the brackets of rounding down
    xhat  x~  x'  n*         an accent, a prime, a star
    <=  >=  ->  <-  ..  -    their signs
"""

import html
import re

# Names with an underscore that is no subscript.
WHOLE = ("running_mean", "running_var", "inv_std", "scale_low", "scale_high", "shift_max")

TOKEN = re.compile(
    rf"""(?P<space>\ +)
    |(?P<whole>\u03b4?(?:{"|".join(WHOLE)}))(?![A-Za-z0-9])
    |(?P<number>\d[\d,]*\d(?:\.\d+)?(?:e-?\d+)?|\d(?:\.\d+)?(?:e-?\d+)?)
    |(?P<name>[^\W\d_]+)
    |(?P<mark>[_^])
    |(?P<sign>\|\||<=|>=|->|<-|>>|\.\.\.|\.\.|.)""",
    re.VERBOSE,
)

SIGNS = {"<=": "≤", ">=": "≥", "->": "→", "<-": "←", "..": "…", "...": "…", "-": "−", "||": "∥"}
INFIX = {*"=<>+/:;,", "≤", "≥", "→", "←", "−", "≫"}
CLOSE = {"(": ")", "[": "]", "{": "}"}

# A tag or a name of a step, at the end of a line and set off by a space of two or more.
END = re.compile(r"\s{2,}(\([A-Z]\d+\)|\[[a-z]+(?: \d+)?\])$")


BREAK = re.compile(r" (?:[=+-]|<=|>=|->|<-|with|where|else) ")


def equation_id(tag):
    """Return the address of a tagged equation within its page."""
    return f"equation-{tag.lower()}"


def block(text):
    """Return the HTML of an indented block of formulas, one row a line."""
    rows = "\n".join(_row(line) for line in text.rstrip("\n").split("\n"))
    return f'<div class="formulas">\n{rows}\n</div>\n'


def _row(line):
    """Return one line: its parts, set off by two or more spaces, and its tag."""
    body = line.strip()
    indent = len(line) - len(line.lstrip())
    end = END.search(line.rstrip())
    if end:
        body = line.rstrip()[: end.start()].strip()
    body = re.sub(r" {2,}(=|<=|\+) +", r" \1 ", body)  # a sign belongs to what stands around it
    parts = "".join(f"<span>{_breakable(part)}</span>" for part in re.split(r" {2,}", body) if part)
    tag, place = "", ""
    if end:
        name = end.group(1)
        if name.startswith("("):
            place = f' id="{equation_id(name[1:-1])}"'
        tag = f'<span class="tag">{html.escape(name)}</span>'
    pad = f' style="padding-left: {min(indent, 16) * 0.4:.1f}em"' if indent else ""
    return f'<div class="row"{place}><div class="parts"{pad}>{parts}</div>{tag}</div>'


def _breakable(text):
    """Return a formula as pieces between which a narrow screen may break it: before = + - <=.

    A browser breaks no formula by itself, and a term that is out of sight is a wrong formula.
    """
    pieces, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        long = at - start > 24 and "sqrt(" not in text[start:at]  # then inside of brackets too
        if (depth == 0 or long) and BREAK.match(text, at):
            pieces.append(text[start:at].strip())
            start = at
    return " ".join(math(piece) for piece in [*pieces, text[start:].strip()] if piece)


def math(text):
    """Return a formula on one line as a MathML element."""
    tokens = [
        (match.lastgroup, match.group(match.lastgroup) if match.lastgroup else "")
        for match in TOKEN.finditer(text)
    ]
    return f"<math>{_Reader(tokens).until(None)}</math>"


class _Reader:
    """Reads tokens (kind, text) from left to right; `at` is the next one."""

    def __init__(self, tokens):
        self.tokens, self.at = tokens, 0

    def peek(self, ahead=0):
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else (None, None)

    def until(self, close):
        """Return all up to a closing bracket or the end; the bracket is left to be read."""
        done = []
        while self.peek()[0] and not (self.peek()[0] == "sign" and self.peek()[1] == close):
            kind, text = self.peek()
            if kind == "space":
                self.at += 1
                if done and self._beside_operand(done[-1]):
                    done.append('<mspace width="0.28em"></mspace>')
            else:
                done.append(self.with_marks())
        return "<mrow>" + "".join(done) + "</mrow>"

    def _beside_operand(self, before):
        """Return whether a space here separates two things that no sign separates."""
        kind, text = self.peek()
        infix = kind == "sign" and SIGNS.get(text, text) in INFIX
        return not infix and not before.startswith('<mo class="infix"')

    def with_marks(self):
        """Return one thing with its subscript and superscript."""
        kind, text = self.peek()
        base = self.atom()
        sub = sup = None
        while True:
            kind, text = self.peek()
            if kind == "mark" and text == "_" and sub is None:
                self.at += 1
                sub = self.subscript()
            elif kind == "mark" and text == "^" and sup is None:
                self.at += 1
                sup = self.superscript()
            else:
                break
        if sub and sup:
            return f"<msubsup>{base}{sub}{sup}</msubsup>"
        if sub:
            return f"<msub>{base}{sub}</msub>"
        return f"<msup>{base}{sup}</msup>" if sup else base

    def atom(self):
        """Return a name with its primes and accents, a number, a sign, or a bracket's contents."""
        kind, text = self.peek()
        self.at += 1
        if kind == "number":
            return f"<mn>{text}</mn>"
        if kind == "whole":
            return f"<mi>{text}</mi>"
        if kind == "name":
            return self.name(text)
        if text in CLOSE and self._closes(text):
            return self.bracket(text)
        shown = html.escape(SIGNS.get(text, text))
        if text == "." and self.peek()[0] == "space" and self.peek(-2)[0] == "space":
            return '<mo class="infix">⋅</mo>'
        if SIGNS.get(text, text) in INFIX:
            return f'<mo class="infix" {self._spacing()}>{shown}</mo>'
        return f'<mo stretchy="false" lspace="0" rspace="0">{shown}</mo>'

    def _spacing(self):
        """Return the space around a sign: none where the text has none, as in (1-a) or 1/R."""
        before = self.peek(-2)[0] == "space"
        after = self.peek()[0] == "space"
        return f'lspace="{"0.28em" if before else "0"}" rspace="{"0.28em" if after else "0"}"'

    def _closes(self, opening):
        """Return whether the bracket that was just read is closed on this line."""
        depth = 0
        for kind, text in self.tokens[self.at - 1 :]:
            if kind == "sign" and text == opening:
                depth += 1
            elif kind == "sign" and text == CLOSE[opening]:
                depth -= 1
                if depth == 0:
                    return True
        return False

    def bracket(self, opening, ends=None):
        inside = self.until(CLOSE[opening])
        self.at += 1
        left, right = ends or (opening, CLOSE[opening])
        fence = '<mo stretchy="false" lspace="0" rspace="0">{}</mo>'.format
        return f"<mrow>{fence(left)}{inside}{fence(right)}</mrow>"

    def name(self, text):
        words = self.peek(1)[0] == "name" and self.peek(1)[1] in ("of", "over")  # a sum in words
        if text == "sum" and not words:
            return '<mo class="sum" lspace="0" rspace="0.1em">∑</mo>'
        if self.peek() == ("sign", "(") and self._opens_here() and text in ("sqrt", "floor"):
            self.at += 1
            if text == "floor":
                return self.bracket("(", "⌊⌋")
            inside = self.until(")")
            self.at += 1
            return f"<msqrt>{inside}</msqrt>"
        accent = ""
        if re.fullmatch("δ?[xpmv]hat", text):
            text, accent = text[:-3], "^"
        done = _identifier(text)
        if self.peek() == ("sign", "~"):
            self.at += 1
            accent = "~"
        if accent:
            done = f'<mover accent="true">{done}<mo stretchy="false">{accent}</mo></mover>'
        marks = ""
        while self.peek() in (("sign", "'"), ("sign", "*")):
            marks += "′" if self.peek()[1] == "'" else "∗"
            self.at += 1
        if not marks:
            return done
        return f'<mrow>{done}<mo class="prime" lspace="0" rspace="0">{marks}</mo></mrow>'

    def _opens_here(self):
        self.at += 1
        closes = self._closes("(")
        self.at -= 1
        return closes

    def subscript(self):
        """Return what hangs below: x_ri, x_1, s_T,k, p_c(m), x_(b, n) and x_-1."""
        if self.peek() == ("sign", "("):
            self.at += 1
            return self._plain_if_closed()
        done = [self.atom()]
        while True:
            # p_c(m) is at the index c(m), but L_G(z) is the value of L_G at z
            index = self.peek(-1)[0] == "name" and self.peek(-1)[1].islower()
            if self.peek() == ("sign", "(") and len(done) == 1 and index:
                self.at += 1
                done.append(self._plain_if_closed(keep=True))
            elif self.peek() == ("sign", ",") and self.peek(1)[0] in ("name", "number"):
                self.at += 1
                done += ["<mo>,</mo>", self.atom()]
            elif self.peek()[0] in ("name", "number") and self.peek(-1)[0] == "number":
                done.append(self.atom())
            else:
                return f"<mrow>{''.join(done)}</mrow>"

    def superscript(self):
        if self.peek() == ("sign", "("):
            self.at += 1
            return self._plain_if_closed()
        sign = ""
        if self.peek() == ("sign", "-"):
            sign = self.atom()
        return f"<mrow>{sign}{self.atom()}</mrow>"

    def _plain_if_closed(self, keep=False):
        """Return the contents of a bracket that was just opened, with it or without."""
        if not self._closes("("):
            return '<mo stretchy="false">(</mo>'
        if keep:
            return self.bracket("(")
        inside = self.until(")")
        self.at += 1
        return inside


def _identifier(text):
    """Return a name: letters and changes of letters slanted, words and functions upright."""
    short = len(text) == 1 or (len(text) == 2 and text[0] in "dδ" and text not in ("db",))
    if text == "db" or short or text == "lr":
        return f'<mi class="letter">{text}</mi>'
    return f"<mi>{text}</mi>"


# x_r, s_T,k, W^T or T^2 inside of a sentence, and nothing that could be a name of the code.
INLINE = re.compile(
    r"(?<![\w/.^-])(?P<base>[^\W\d_]{1,3}[~']?)"
    r"(?:_(?P<sub>(?:[A-Za-z]{1,2}|\d)(?:,[a-z]\*?)*(?:\([a-z](?:, ?[a-z])*\))?))?"
    r"(?:\^(?P<sup>-?\d+|[A-Z]))?(?![\w^(])"
)


def inline(text):
    """Yield (text, subscript, superscript) of a sentence, None for what is absent."""
    at = 0
    for match in INLINE.finditer(text):
        if not (match["sub"] or match["sup"]):
            continue
        if match.start() > at:
            yield text[at : match.start()], None, None
        yield match["base"], match["sub"], match["sup"]
        at = match.end()
    if at < len(text):
        yield text[at:], None, None
