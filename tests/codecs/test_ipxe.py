import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.codecs.ipxe import Boot, address, boot_script, hyphened, off_script, shown, wait_script
from fleetd.errors import UsageError

BASE = "http://10.77.0.1:8081"
AGAIN = f"{BASE}/ipxe/52-54-00-12-34-07"
NASTY = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(["${", "}", "&&", "||", ";", "\n", "\r", '"', "'", "\\", "#!ipxe", " ", "poweroff", "\x00"])
    ).map("".join),
)


def boot(**changes: object) -> Boot:
    given = {
        "say": "booting rack3/node07.12",
        "kernel": f"{BASE}/k",
        "initrds": [f"{BASE}/i", f"{BASE}/s"],
        "arguments": ["quiet", "fleetd.mac=52:54:00:12:34:07"],
        "again": AGAIN,
    }
    return Boot(**(given | changes))  # type: ignore[arg-type]


def test_a_boot_script_in_full() -> None:
    assert boot_script(boot()) == (
        "#!ipxe\n"
        "echo fleetd: booting rack3/node07.12\n"
        "kernel --name kernel http://10.77.0.1:8081/k"
        " initrd=initrd0 initrd=initrd1 quiet fleetd.mac=52:54:00:12:34:07 || goto failed\n"
        "initrd --name initrd0 http://10.77.0.1:8081/i || goto failed\n"
        "initrd --name initrd1 http://10.77.0.1:8081/s || goto failed\n"
        "boot || goto failed\n"
        ":failed\n"
        "echo fleetd: that failed, once more\n"
        "imgfree ||\n"
        "sleep 10\n"
        "chain --replace --autofree http://10.77.0.1:8081/ipxe/52-54-00-12-34-07?platform=${platform} || goto failed\n"
    )


def test_a_waiting_machine_asks_again_and_gives_up_where_nobody_answers() -> None:
    text = wait_script("node07 waits", AGAIN, 600.0)
    assert "sleep 10\nchain --replace --autofree" in text
    assert "iseq ${left} 61 || goto again\npoweroff || goto again\n" in text
    assert "iseq ${left} 1 ||" in wait_script("x", AGAIN, 0.0)


def test_a_machine_that_ipxe_cannot_turn_off_is_turned_off_by_a_kernel() -> None:
    text = off_script("bye", AGAIN, f"{BASE}/off/kernel", f"{BASE}/off/initrd")
    assert text.index("poweroff ||") < text.index("kernel --name kernel http://10.77.0.1:8081/off/kernel initrd=off")
    assert "kernel" not in off_script("bye", AGAIN)


@given(NASTY)
def test_what_is_shown_is_one_line_of_plain_words(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9 .,:/_()@+?-]*", shown(text))
    plain = boot_script(boot(say="")).splitlines()
    made = boot_script(boot(say=text)).splitlines()
    assert len(made) == len(plain)
    assert [line for at, line in enumerate(made) if at != 1] == [line for at, line in enumerate(plain) if at != 1]
    assert len(wait_script(text, AGAIN, 60.0).splitlines()) == 9
    assert "${" not in made[1]


@given(NASTY, NASTY)
def test_no_name_breaks_out_of_an_address(one: str, other: str) -> None:
    try:
        made = address(BASE, "boot", one, other)
    except (UsageError, UnicodeEncodeError):
        return
    assert made.count("/") == 5
    assert re.fullmatch(r"http://10\.77\.0\.1:8081/boot/[A-Za-z0-9._~%-]*/[A-Za-z0-9._~%-]*", made)


@given(NASTY)
def test_an_argument_or_an_address_is_one_word_or_refused(text: str) -> None:
    for change in ({"arguments": [text]}, {"kernel": text}, {"initrds": [text]}, {"again": text}):
        try:
            made = boot_script(boot(**change))
        except UsageError:
            continue
        assert re.fullmatch(r"[A-Za-z0-9._~:/?=,%+@\[\]-]+", text)
        assert text in made


def test_arguments_that_no_kernel_takes_are_refused() -> None:
    with pytest.raises(UsageError, match="more than a kernel's 2000"):
        boot_script(boot(arguments=["a" * 1000, "b" * 1000]))


def test_a_mac_as_ipxe_spells_it() -> None:
    assert hyphened("52:54:00:12:34:07") == "52-54-00-12-34-07"
