#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""
Check the specification: identifiers, key words, agreement with the wire header,
and identifiers that the rest of the tree names. Prints KTAP.

  lint.py               check
  lint.py --clauses     print each clause and the tests that name it
  lint.py --html FILE   check that a rendering is complete
  lint.py --selftest    seed one fault at a time and see that its check fails
"""
import argparse
import copy
import os
import re
import sys

SPEC = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(SPEC)
SECTION = "virtio-iommu-stage1.tex"
REGISTRY = "clauses.txt"
HEADER = "include/uapi/linux/virtio_iommu_stage1.h"
# Where identifiers are looked for, and what counts as a test there
ROOTS = ["drivers", "include", "linux-patches", "qemu", "qemu-patches", "tools"]
TEST_PATH = re.compile(r"^tools/|test")
SKIP_DIRS = {".git", "build"}
MAX_FILE = 1 << 20

# What the text may name that virtio itself defines
FOREIGN_CONSTANTS = {"VIRTIO_IOMMU_S_" + s for s in
                     "OK IOERR UNSUPP DEVERR INVAL RANGE NOENT FAULT NOMEM".split()}
FOREIGN_CONSTANTS |= {"VIRTIO_F_INDIRECT_DESC", "VIRTIO_F_IN_ORDER"}
FOREIGN_STRUCTS = {"virtio_iommu_config", "virtio_iommu_req_tail"}
FOREIGN_FIELDS = {"input_range"}

# pandoc drops macros that it does not know without a word
MACROS = set("""section subsection subsubsection paragraph subparagraph label ref
    devicenormative drivernormative clause field emph item begin end hline""".split())
ENVIRONMENTS = {"description", "itemize", "enumerate", "lstlisting", "tabular"}

ID = re.compile(r"\b([A-Z]{3}-[DR]-[0-9]+)\b")
CLAUSE = re.compile(r"\\clause\{([^}]*)\}")
KEYWORD = re.compile(r"\b(?:MUST NOT|MUST|SHOULD NOT|SHOULD|MAY NOT|MAY|SHALL NOT|SHALL|"
                     r"REQUIRED|RECOMMENDED|OPTIONAL)\b")
KEYWORDS = {"MUST NOT", "MUST", "SHOULD NOT", "SHOULD", "MAY"}
HEADING = re.compile(r"\\(?:section|subsection|subsubsection|paragraph|subparagraph)\{|"
                     r"\\(device|driver)normative\{")
LISTING = re.compile(r"\\begin\{lstlisting\}(.*?)\\end\{lstlisting\}", re.S)


def key(ident):
    series, number = ident.rsplit("-", 1)
    return series, int(number)


def blank(match):
    """Replace by as many lines, so that line numbers stay."""
    return "\n" * match.group(0).count("\n")


class Header:
    """Constants and structures of the C header."""

    def __init__(self, text):
        text = re.sub(r"/\*.*?\*/", blank, text, flags=re.S)
        self.constants, self.structs = {}, {}
        for name, value in re.findall(r"^#define[ \t]+(VIRTIO_\w+)[ \t]+(\S.*)$", text, re.M):
            self.constants[name] = number(value)
        for name, body in re.findall(r"^struct (\w+) \{(.*?)^\};", text, re.M | re.S):
            self.structs[name] = members(body)
        self.fields = {m[1] for s in self.structs.values() for m in s}

    def size(self, name):
        return sum(int(kind[-2:].lstrip("eu")) // 8 * (count or 1)
                   for kind, _, count in self.structs[name])


def number(value):
    value = value.strip()
    if re.fullmatch(r"(0x[0-9a-fA-F]+|[0-9]+)", value):
        return int(value, 0)
    shift = re.fullmatch(r"\((\d+) << (\d+)\)", value)
    return int(shift[1]) << int(shift[2]) if shift else value


def members(body):
    return [(kind.lstrip("_"), name, int(count or 0)) for kind, name, count in
            re.findall(r"^\s*(\w+)\s+(\w+)(?:\[(\d+)\])?;", body, re.M)]


class Tree:
    """Everything that the checks look at. Faults are seeded in a copy."""

    def __init__(self):
        def read(*path):
            with open(os.path.join(ROOT, *path), encoding="utf-8") as f:
                return f.read()
        self.text = read("spec", SECTION)
        self.registry = read("spec", REGISTRY)
        self.header = read(HEADER)
        self.mentions = list(mentions())

    @property
    def tex(self):
        return re.sub(r"(?<!\\)%.*", "", self.text)

    @property
    def prose(self):
        return LISTING.sub(blank, self.tex)

    def line(self, pos, text=None):
        return f"{SECTION}:{(text or self.tex).count(chr(10), 0, pos) + 1}"

    def clauses(self):
        """The registry: identifier -> gist, and its malformed lines."""
        good, bad = {}, []
        for n, line in enumerate(self.registry.splitlines(), 1):
            if line.startswith("#") or not line:
                continue
            ident, tab, gist = line.partition("\t")
            if not tab or not gist.strip() or not ID.fullmatch(ident):
                bad.append(f"{REGISTRY}:{n}: not of the form identifier, tab, gist")
            elif ident in good:
                bad.append(f"{REGISTRY}:{n}: {ident} is there twice")
            else:
                good[ident] = gist.strip()
        return good, bad

    def live(self):
        return {i for i, gist in self.clauses()[0].items() if not gist.startswith("retired:")}

    def sections(self):
        """(kind, start, end) of each section, kind being device, driver or None."""
        heads = list(HEADING.finditer(self.prose))
        ends = [h.start() for h in heads[1:]] + [len(self.prose)]
        if heads:
            yield None, 0, heads[0].start()
        for head, end in zip(heads, ends):
            yield head[1], head.start(), end

    def sentences(self, start, end):
        """(position, sentence) of each sentence from start to end."""
        for para in re.finditer(r"(?:[^\n]*\S[^\n]*(?:\n|$))+", self.prose[start:end]):
            pos = start + para.start()
            for part in re.split(r"((?<=[.!?])\s+(?=[A-Z\\]))", para.group(0)):
                if part.strip():
                    yield pos + len(part) - len(part.lstrip()), part.strip()
                pos += len(part)


def mentions():
    for top in ROOTS:
        for where, dirs, files in os.walk(os.path.join(ROOT, top)):
            dirs[:] = sorted(d for d in dirs if d not in SKIP_DIRS)
            for name in sorted(files):
                path = os.path.join(where, name)
                if os.path.islink(path) or os.path.getsize(path) > MAX_FILE:
                    continue
                with open(path, "rb") as f:
                    data = f.read()
                if b"-D-" not in data and b"-R-" not in data:
                    continue
                for n, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
                    for ident in ID.findall(line):
                        yield ident, os.path.relpath(path, ROOT), n


# The checks: each a generator of complaints

def check_sentences(t):
    """each normative sentence has exactly one identifier, at its start"""
    for kind, start, end in t.sections():
        if not kind:
            continue
        for pos, s in t.sentences(start, end):
            ids, words = CLAUSE.findall(s), KEYWORD.findall(s)
            at = t.line(pos)
            if len(ids) > 1:
                yield f"{at}: several identifiers in a sentence: {' '.join(ids)}"
            elif words and not ids:
                yield f"{at}: {words[0]} without an identifier"
            elif ids and not words:
                yield f"{at}: {ids[0]} is not normative"
            elif ids and not s.startswith("\\clause"):
                yield f"{at}: {ids[0]} is not at the start of its sentence"


def check_keywords(t):
    """key words are those of RFC 2119 that we use, and only in normative sections"""
    for kind, start, end in t.sections():
        for m in KEYWORD.finditer(t.prose, start, end):
            word = re.sub(r"\s+", " ", m[0])
            if not kind:
                yield f"{t.line(m.start())}: {word} outside of a normative section"
            elif word not in KEYWORDS:
                yield f"{t.line(m.start())}: {word}: use MUST, SHOULD or MAY"
    for m in re.finditer(r"\b(MUST|SHOULD|MAY)\n", t.prose):
        if re.match(r"\s*NOT\b", t.prose[m.end():]):
            yield f"{t.line(m.start())}: {m[1]} NOT is divided by a line break"


def check_unique(t):
    """identifiers are well formed, unique, and of the kind of their section"""
    seen = {}
    for kind, start, end in t.sections():
        for m in CLAUSE.finditer(t.prose, start, end):
            at = t.line(m.start())
            if not ID.fullmatch(m[1]):
                yield f"{at}: {m[1]} is no identifier"
                continue
            if m[1] in seen:
                yield f"{at}: {m[1]} is already at {seen[m[1]]}"
            seen[m[1]] = at
            want = {"device": "-D-", "driver": "-R-"}.get(kind)
            if not want:
                yield f"{at}: {m[1]} outside of a normative section"
            elif want not in m[1]:
                yield f"{at}: {m[1]} in a section of {kind} requirements"


def check_registry(t):
    """clauses.txt lists the identifiers of the text, without gaps"""
    known, bad = t.clauses()
    yield from bad
    text, live = set(CLAUSE.findall(t.prose)), t.live()
    for ident in sorted(text - live, key=str):
        why = "is retired" if ident in known else "is missing"
        yield f"{REGISTRY}: {ident} is in the text, but {why} here"
    for ident in sorted(live - text, key=key):
        yield f"{REGISTRY}: {ident} is not in the text, and not retired"
    series = {}
    for ident in known:
        series.setdefault(key(ident)[0], []).append(key(ident)[1])
    for name, numbers in series.items():
        if numbers != list(range(1, len(numbers) + 1)):
            gap = next(n for n, got in enumerate(numbers, 1) if n != got)
            yield f"{REGISTRY}: {name}-{gap} is missing or out of order"


def check_constants(t):
    """constants have the values of the C header, and all of them are described"""
    h = Header(t.header)
    defined = {}
    for listing in LISTING.finditer(t.tex):
        for m in re.finditer(r"^#define[ \t]+(\w+)[ \t]+(\S.*)$", listing[1], re.M):
            at, value = t.line(listing.start(1) + m.start()), number(m[2])
            defined[m[1]] = value
            if m[1] not in h.constants:
                yield f"{at}: {m[1]} is not in {HEADER}"
            elif h.constants[m[1]] != value:
                yield f"{at}: {m[1]} is {value}, in {HEADER} {h.constants[m[1]]}"
    for m in re.finditer(r"\\item\[(VIRTIO_\w+) \((\w+)\)\]", t.prose):
        value = number(m[2])
        defined[m[1]] = value
        if m[1] not in h.constants:
            yield f"{t.line(m.start())}: {m[1]} is not in {HEADER}"
        elif h.constants[m[1]] != value:
            yield f"{t.line(m.start())}: {m[1]} is {value}, in {HEADER} {h.constants[m[1]]}"
    for m in re.finditer(r"\bVIRTIO_\w+(\*?)", t.tex):
        name = m[0].rstrip("*")
        family = m[1] and any(c.startswith(name) for c in FOREIGN_CONSTANTS | set(h.constants))
        if not family and name not in FOREIGN_CONSTANTS and name not in h.constants:
            yield f"{t.line(m.start())}: {name} is in no header"
    for name in h.constants:
        if name not in defined:
            yield f"{HEADER}: {name} is not described in {SECTION}"


def check_structs(t):
    """structures have the members of the C header, and all of them are described"""
    h, seen = Header(t.header), set()
    for listing in LISTING.finditer(t.tex):
        for m in re.finditer(r"^struct (\w+) \{(.*?)^\};", listing[1], re.M | re.S):
            at = t.line(listing.start(1) + m.start())
            seen.add(m[1])
            if m[1] not in h.structs:
                yield f"{at}: struct {m[1]} is not in {HEADER}"
            elif h.structs[m[1]] != members(m[2]):
                yield f"{at}: struct {m[1]} differs from {HEADER}"
    for name in h.structs:
        if name not in seen:
            yield f"{HEADER}: struct {name} is not described in {SECTION}"
    for m in re.finditer(r"\bstruct\s+(\w+)", t.prose):
        if m[1] not in h.structs and m[1] not in FOREIGN_STRUCTS:
            yield f"{t.line(m.start())}: struct {m[1]} is in no header"


def check_fields(t):
    """names of fields, and sizes, are those of the C header"""
    h = Header(t.header)
    for m in re.finditer(r"\\field\{([^}]*)\}", t.prose):
        if m[1] not in h.fields and m[1] not in FOREIGN_FIELDS:
            yield f"{t.line(m.start())}: no structure has a field {m[1]}"
    sizes = re.findall(r"(\d+) \+ (\d+) \*\s+\\field\{nr\}", t.prose)
    want = (str(h.size("virtio_iommu_req_invalidate")), str(h.size("virtio_iommu_inv_desc")))
    for got in sizes:
        if got != want:
            yield f"{SECTION}: the length of a request is {' + '.join(want)} * nr, not {got}"
    if not sizes:
        yield f"{SECTION}: the length of a request, {' + '.join(want)} * nr, is not given"


def check_table(t):
    """rows of tables that name a status and a clause agree with the clause"""
    said = {}
    for _, start, end in t.sections():
        for _, s in t.sentences(start, end):
            for ident in CLAUSE.findall(s):
                said[ident] = s
    for m in re.finditer(r"& (VIRTIO_IOMMU_S_\w+) & (\S+) \\\\", t.prose):
        if m[1] not in said.get(m[2], ""):
            yield f"{t.line(m.start())}: {m[2]} does not say {m[1]}"


def check_references(t):
    """references and identifiers in the text lead somewhere"""
    labels = re.findall(r"\\label\{([^}]*)\}", t.prose)
    labels += [f"{kind}normative:{label}" for kind, label in re.findall(
        r"\\(device|driver)normative\{[^}]*\}\{[^}]*\}\{([^}]*)\}", t.prose)]
    for label in sorted(set(labels)):
        if labels.count(label) > 1:
            yield f"{SECTION}: label {label} is there twice"
    for m in re.finditer(r"\\ref\{([^}]*)\}", t.prose):
        if re.sub(r"\s+", " ", m[1]) not in labels:
            yield f"{t.line(m.start())}: no label {m[1]}"
    live = t.live()
    for m in ID.finditer(t.prose):
        if m[1] not in live:
            yield f"{t.line(m.start())}: no clause {m[1]}"


def check_latex(t):
    """only macros that the renderings know, braces and environments in pairs"""
    for m in re.finditer(r"\\([a-zA-Z]+)", t.prose):
        if m[1] not in MACROS:
            yield f"{t.line(m.start())}: unknown macro \\{m[1]}"
    stack = []
    for m in re.finditer(r"\\(begin|end)\{(\w+)\}", t.tex):
        at = t.line(m.start())
        if m[2] not in ENVIRONMENTS:
            yield f"{at}: unknown environment {m[2]}"
        if m[1] == "begin":
            stack.append(m[2])
        elif not stack or stack.pop() != m[2]:
            yield f"{at}: \\end{{{m[2]}}} without its \\begin"
    if stack:
        yield f"{SECTION}: \\begin{{{stack[-1]}}} without its \\end"
    for para in re.finditer(r"(?:[^\n]*\S[^\n]*(?:\n|$))+", t.prose):
        if para.group(0).count("{") != para.group(0).count("}"):
            yield f"{t.line(para.start())}: braces are not in pairs in this paragraph"


def check_tree(t):
    """identifiers that the tree names exist"""
    known, live = t.clauses()[0], t.live()
    series = {key(i)[0][:3] for i in known}
    for ident, path, n in t.mentions:
        if ident[:3] in series and ident not in live:
            why = "is retired" if ident in known else "does not exist"
            yield f"{path}:{n}: {ident} {why}"


CHECKS = [check_sentences, check_keywords, check_unique, check_registry, check_constants,
          check_structs, check_fields, check_table, check_references, check_latex, check_tree]


def failures(tree):
    return {check: list(check(tree)) for check in CHECKS}


def report(results):
    """Print KTAP for (name, complaints) and return the exit status."""
    print("TAP version 13")
    print(f"1..{len(results)}")
    for n, (name, complaints) in enumerate(results, 1):
        for line in complaints:
            print(f"# {line}")
        print(f"{'not ok' if complaints else 'ok'} {n} - {name}")
    return 1 if any(complaints for _, complaints in results) else 0


def lint():
    return report([(f"spec: {c.__doc__}", bad) for c, bad in failures(Tree()).items()])


def clauses():
    tree = Tree()
    known, tests, other = tree.clauses()[0], {}, {}
    for ident, path, n in tree.mentions:
        where = tests if TEST_PATH.search(path) else other
        where.setdefault(ident, {}).setdefault(path, []).append(str(n))

    def places(found):
        return [f"{p}:{','.join(n)}" for p, n in found.items()]

    named = 0
    for ident, gist in known.items():
        if ident not in tree.live():
            continue
        named += ident in tests
        print(f"{ident:<9} {gist}")
        for place in places(tests.get(ident, {})) or ["-"]:
            print(f"{'':<9}   test: {place}")
        for place in places(other.get(ident, {})):
            print(f"{'':<9}   code: {place}")
    print(f"{named} of {len(tree.live())} clauses are named by a test")
    return 0


def html(path):
    tree = Tree()
    with open(path, encoding="utf-8") as f:
        page = f.read()
    ids = re.findall(r'\bid="([^"]*)"', page)
    bad = [f"{path}: {i} is there {ids.count(i)} times" for i in sorted(tree.live(), key=key)
           if ids.count(i) != 1]
    bad += [f"{path}: link to nowhere: {a}" for a in re.findall(r'href="#([^"]*)"', page)
            if a not in ids]
    bad += [f"{path}: LaTeX left over: {m}" for m in
            re.findall(r"\\(?:clause|field|ref|label|emph|begin)\b", page)]
    for line in bad:
        print(line, file=sys.stderr)
    return 1 if bad else 0


# The seeded faults: what is done to the tree, and the check that has to notice

def first(ident):
    return rf"(\\clause\{{{ident}\}})"


FAULTS = [
    ("identifier taken away", check_sentences, "text", first("INV-D-9") + " ", ""),
    ("two identifiers in a sentence", check_sentences, "text", first("INV-D-9"),
     r"\1 \\clause{INV-D-10}"),
    ("normative sentence added behind another", check_sentences, "text",
     r"(returned in any order\.|DEVICE_NEEDS_RESET\.)", r"\1 The device MUST log this."),
    ("key word taken away", check_sentences, "text",
     r"(INV-R-3\} The driver) MUST ignore", r"\1 ignores"),
    ("identifier in mid-sentence", check_sentences, "text",
     first("INV-R-3") + " The driver", r"The driver \1"),
    ("key word in a section that is not normative", check_keywords, "text",
     r"They\s+are all alike", "They MUST be all alike"),
    ("SHALL", check_keywords, "text", r"(INV-D-10\} The device) MUST", r"\1 SHALL"),
    ("MAY NOT", check_keywords, "text", r"(INV-R-5\} The driver) MUST NOT", r"\1 MAY NOT"),
    ("identifier used twice", check_unique, "text", r"\\clause\{INV-D-10\}",
     r"\\clause{INV-D-9}"),
    ("device clause in a driver section", check_unique, "text", r"\\clause\{INV-R-3\}",
     r"\\clause{INV-D-3}"),
    ("identifier misspelt", check_unique, "text", r"\\clause\{INV-R-3\}",
     r"\\clause{INV-R3}"),
    ("clause without a line in clauses.txt", check_registry, "registry",
     r"(?m)^INV-D-51\t.*\n", ""),
    ("clause renumbered", check_registry, "text", r"\\clause\{INV-D-51\}",
     r"\\clause{INV-D-52}"),
    ("clause deleted without a trace", check_registry, "both",
     r"(?m)(\\clause\{INV-D-12\}|^INV-D-12\t)(?:.+\n)+?(?=\n|INV)", ""),
    ("line in clauses.txt twice", check_registry, "registry",
     r"(?m)^(INV-D-7\t.*\n)", r"\1\1"),
    ("clause in the text that is retired", check_registry, "registry",
     r"(?m)^(INV-D-7\t)", r"\1retired: "),
    ("constant with another value in a listing", check_constants, "text",
     r"(INV_S_RANGE +)2", r"\g<1>3"),
    ("constant with another value in prose", check_constants, "text",
     r"(F_STAGE1) \(16\)", r"\1 (15)"),
    ("constant changed in the header", check_constants, "header",
     r"(VIRTIO_IOMMU_T_INVALIDATE\s+)0x22", r"\g<1>0x23"),
    ("constant added to the header", check_constants, "header",
     r"(#define VIRTIO_IOMMU_INV_S_RANGE.*\n)", r"\1#define VIRTIO_IOMMU_INV_S_PASID 3\n"),
    ("status misspelt", check_constants, "text", r"VIRTIO_IOMMU_S_DEVERR",
     "VIRTIO_IOMMU_S_DEVERROR"),
    ("member of a listing with another width", check_structs, "text",
     r"le16 flags;", "le32 flags;"),
    ("members of the header in another order", check_structs, "header",
     r"(\t__le64\t+start;\n)(\t__le64\t+last;\n)", r"\2\1"),
    ("array of the header with another length", check_structs, "header",
     r"reserved\[3\]", "reserved[7]"),
    ("structure added to the header", check_structs, "header",
     r"(?m)^(#endif)", "struct virtio_iommu_req_x {\n\t__u8 type;\n};\n\\1"),
    ("name of a field misspelt", check_fields, "text", r"\\field\{leaf_shift\}",
     r"\\field{leafshift}"),
    ("length of a request", check_fields, "text", r"4 \+ 32 \*", "4 + 24 *"),
    ("status in the table differs from its clause", check_table, "text",
     r"VIRTIO_IOMMU_S_RANGE & INV-D-24", "VIRTIO_IOMMU_S_INVAL & INV-D-24"),
    ("reference to nowhere", check_references, "text", r"\\ref\{sec:Device Types",
     r"\\ref{sec:Device Type"),
    ("text names a clause that does not exist", check_references, "text",
     r"as INV-R-27 permits", "as INV-R-99 permits"),
    ("macro that pandoc would drop", check_latex, "text", r"\\emph\{",
     r"\\textsc{"),
    ("environment not closed", check_latex, "text", r"\\end\{itemize\}", ""),
    ("brace not closed", check_latex, "text", r"\\field\{done\}", r"\\field{done"),
    ("test names a clause that does not exist", check_tree, "mentions",
     ("INV-D-999", "tools/testing/x.c", 1), None),
]


def selftest():
    clean = Tree()
    results = [("spec selftest: the tree as it is passes",
                [line for bad in failures(clean).values() for line in bad])]
    for name, check, where, pattern, repl in FAULTS:
        tree, problem = copy.copy(clean), []
        if where == "mentions":
            tree.mentions = clean.mentions + [pattern]
        else:
            for part in ("text", "registry") if where == "both" else (where,):
                new, count = re.subn(pattern, repl, getattr(tree, part), count=1)
                if not count:
                    problem = ["the fault could not be seeded"]
                setattr(tree, part, new)
        if not problem and not list(check(tree)):
            problem = [f"{check.__name__} did not notice"]
        results.append((f"spec selftest: {name}", problem))
    unseeded = [c.__name__ for c in CHECKS if c not in {f[1] for f in FAULTS}]
    results.append(("spec selftest: each check has a seeded fault", unseeded))
    return report(results)


def main():
    parser = argparse.ArgumentParser(description="Check the specification.")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--clauses", action="store_true")
    group.add_argument("--selftest", action="store_true")
    group.add_argument("--html", metavar="FILE")
    args = parser.parse_args()
    if args.clauses:
        return clauses()
    if args.selftest:
        return selftest()
    if args.html:
        return html(args.html)
    return lint()


if __name__ == "__main__":
    sys.exit(main())
