"""Languages as file names and subtitle streams write them: `de`, `ger`, `deu`, `German`, `de-AT`."""

from calce_jax.errors import UsageError

# ISO 639-1, both codes of ISO 639-2, English name; other codes and names are equal only to themselves.
_TABLE = """
    ar ara ara arabic       bg bul bul bulgarian    bn ben ben bengali      ca cat cat catalan      cs cze ces czech
    da dan dan danish       de ger deu german       el gre ell greek        en eng eng english      es spa spa spanish
    et est est estonian     eu baq eus basque       fa per fas persian      fi fin fin finnish      fr fre fra french
    gl glg glg galician     he heb heb hebrew       hi hin hin hindi        hr hrv hrv croatian     hu hun hun hungarian
    id ind ind indonesian   is ice isl icelandic    it ita ita italian      ja jpn jpn japanese     ko kor kor korean
    lt lit lit lithuanian   lv lav lav latvian      mk mac mkd macedonian   ms may msa malay        nl dut nld dutch
    no nor nor norwegian    pl pol pol polish       pt por por portuguese   ro rum ron romanian     ru rus rus russian
    sk slo slk slovak       sl slv slv slovenian    sq alb sqi albanian     sr srp srp serbian      sv swe swe swedish
    ta tam tam tamil        te tel tel telugu       th tha tha thai         tr tur tur turkish      uk ukr ukr ukrainian
    ur urd urd urdu         vi vie vie vietnamese   zh chi zho chinese
"""
_WORDS = _TABLE.split()
_CODES = {word: _WORDS[row] for row in range(0, len(_WORDS), 4) for word in _WORDS[row : row + 4]}


def language_code(written: str) -> str:
    """Return a language in lower case with its two-letter code, and its region if it has one: "pt-br" for "por_BR"."""
    base, _, region = written.strip().lower().replace("_", "-").partition("-")
    code = _CODES.get(base, base)
    return f"{code}-{region}" if region else code


def check_language(written: str) -> None:
    """Check that a text can be a language: a code of two or three letters, also with a region, or an English name.

    Raises:
      UsageError: it is neither. Codes are not looked up, as the table has only some of them.
    """
    base, _, region = written.strip().lower().replace("_", "-").partition("-")
    is_code = len(base) in (2, 3) and base.isascii() and base.isalpha()
    if not (is_code or base in _CODES) or (region and not region.replace("-", "").isalnum()):
        raise UsageError(
            f"language: {written!r} is none", "give a code, such as de or pt-BR, or an English name: German"
        )


def is_language(written: str, asked: str) -> bool:
    """Whether a language is the one asked for: "pt-BR" is "pt" and "Portuguese", but "pt" is not "pt-BR"."""
    code, asked_code = language_code(written), language_code(asked)
    return code == asked_code or code.partition("-")[0] == asked_code
