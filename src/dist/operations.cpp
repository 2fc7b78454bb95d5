// Which operations are kept, their way through the store as lines with tabs, and the report.
#include "dist/operations.h"

#include <fmt/chrono.h>
#include <string.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <sstream>
#include <string_view>
#include <tuple>

#include "core/error.h"
#include "core/log.h"

namespace picotron {
namespace {

using record::Axis;
using record::Entry;

std::string action_text(const Entry& action) {
  return fmt::format("{} of microbatch {}", action.what, action.shape[0]);
}

// The action that an entry belongs to: the newest one begun before it, unless that has ended.
std::string action_of(const Entry& entry, const std::vector<Entry>& all) {
  if (entry.kind == record::Kind::action) return "";
  const auto in = std::find_if(all.rbegin(), all.rend(), [&](const Entry& action) {
    return action.kind == record::Kind::action && action.sequence < entry.sequence;
  });
  const bool goes_on = in != all.rend() && (in->end_ns == 0 || in->end_ns >= entry.begin_ns);
  return goes_on ? action_text(*in) : "";
}

// May ranks at these places be in one group of the axis? They differ along it alone.
bool share_group(const std::string& place, const std::string& other, Axis axis) {
  const auto across = [axis](const std::string& coordinates) {
    std::istringstream text(coordinates);
    std::string kept;
    for (std::string each; std::getline(text >> std::ws, each, ',');) {
      const bool along =
          axis == Axis::world ||
          std::string_view(record::name_of(axis)).find(each.substr(0, 2)) != std::string_view::npos;
      if (!along) kept += each + ',';
    }
    return kept;
  };
  return across(place) == across(other);
}

// Along pp the operations of two ranks are the ends of a message, or those of first and last stage.
bool is_compared(const Operation& operation) {
  return operation.nth > 0 && operation.axis != Axis::pp;
}

// Is this collective another one, not begun, or in another state on a rank of the same group?
bool differs(const Operation& mine, const RankChapter& other) {
  const LastOperations& known = other.operations;
  if (known.list.empty()) return false;
  const auto same = std::find_if(known.list.begin(), known.list.end(), [&](const Operation& its) {
    return its.axis == mine.axis && its.nth == mine.nth;
  });
  const bool mine_ended = mine.took_ns >= 0;
  if (same != known.list.end())
    return same->what != mine.what || (same->took_ns >= 0) != mine_ended;
  const bool begun = mine.nth <= known.collectives[static_cast<size_t>(mine.axis)];
  return !begun || !mine_ended;  // one that is not listed any more has ended
}

std::string seconds_text(double seconds) {
  return seconds < 0.1 ? fmt::format("{:.2f} ms", 1e3 * seconds) : fmt::format("{:.2f} s", seconds);
}

std::string state_of(const Operation& operation) {
  if (operation.awaited) return "waited for";
  if (operation.took_ns < 0) return "runs";
  return "took " + seconds_text(1e-9 * static_cast<double>(operation.took_ns));
}

std::string line_of(const Operation& operation, double seconds_ago, bool marked) {
  const double begun = seconds_ago + 1e-9 * static_cast<double>(operation.age_ns);
  const char* axis = record::name_of(operation.axis);
  return fmt::format(
      "{} {:>9} {:>12} {:>13} {:>10} {:>13}  {}\n", marked ? '*' : ' ', operation.sequence,
      seconds_text(begun) + " ago", state_of(operation), operation.bytes,
      operation.nth == 0 ? "" : fmt::format("{} {}", axis, operation.nth), operation.text());
}

// How many collectives each rank has begun; * where another rank of the group has begun more.
std::string table_of_counts(const std::vector<RankChapter>& ranks) {
  std::vector<Axis> axes;
  for (const Axis axis : {Axis::tp, Axis::cp, Axis::dp_cp, Axis::world}) {
    const auto has_some = [axis](const RankChapter& rank) {
      return rank.operations.collectives[static_cast<size_t>(axis)] > 0;
    };
    if (std::any_of(ranks.begin(), ranks.end(), has_some)) axes.push_back(axis);
  }
  constexpr std::string_view title = "collectives begun over";
  size_t width = title.size();
  for (const RankChapter& rank : ranks)
    width = std::max(width, named(rank.rank, rank.place).size());
  std::string text = fmt::format("{:<{}}", title, width);
  for (const Axis axis : axes) text += fmt::format("{:>10} ", record::name_of(axis));
  text += axes.empty() ? " none\n" : "\n";
  for (const RankChapter& rank : ranks) {
    text += fmt::format("{:<{}}", named(rank.rank, rank.place), width);
    for (const Axis axis : axes) {
      const auto count = [axis](const RankChapter& of) {
        return of.operations.collectives[static_cast<size_t>(axis)];
      };
      const bool behind = std::any_of(ranks.begin(), ranks.end(), [&](const RankChapter& other) {
        return share_group(rank.place, other.place, axis) && count(other) > count(rank);
      });
      const bool known = !rank.operations.list.empty();
      text += fmt::format("{:>10}{}", known ? fmt::format("{}", count(rank)) : "?",
                          known && behind ? '*' : ' ');
    }
    text += fmt::format("  {}\n", rank.standing);
  }
  return text;
}

}  // namespace

std::string Operation::text() const {
  std::string result = what;
  if (axis != Axis::none) result += fmt::format(" over {}", record::name_of(axis));
  if (peer >= 0)
    result += fmt::format(" {} rank {}", what.starts_with("send") ? "to" : "from", peer);
  return action.empty() ? result : fmt::format("{}, in {}", result, action);
}

LastOperations last_operations(const record::Recorder& recorder, uint64_t awaited) {
  using std::chrono::duration_cast, std::chrono::milliseconds, std::chrono::nanoseconds;
  using std::chrono::steady_clock, std::chrono::system_clock;
  LastOperations result{
      .written_ms = duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count(),
      .collectives = recorder.collectives()};
  const std::vector<Entry> all = recorder.entries();
  const int64_t now_ns = duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
  std::vector<const Entry*> kept;
  for (const Entry& entry : all) kept.push_back(&entry);
  const size_t count = std::min(kept.size(), kOperationsKept);
  const auto weight = [&](const Entry* entry) {
    return std::tuple(entry->sequence == awaited, entry == &all.back(), entry->end_ns == 0,
                      entry->sequence);
  };
  std::partial_sort(kept.begin(), kept.begin() + static_cast<std::ptrdiff_t>(count), kept.end(),
                    [&](const Entry* a, const Entry* b) { return weight(a) > weight(b); });
  kept.resize(count);
  std::sort(kept.begin(), kept.end());  // as they stand in `all`: oldest first
  for (const Entry* entry : kept) {
    const bool is_action = entry->kind == record::Kind::action;
    result.list.push_back({.sequence = entry->sequence,
                           .axis = entry->axis,
                           .nth = entry->nth,
                           .peer = entry->peer,
                           .bytes = entry->bytes,
                           .age_ns = now_ns - entry->begin_ns,
                           .took_ns = entry->end_ns == 0 ? -1 : entry->end_ns - entry->begin_ns,
                           .awaited = entry->sequence == awaited,
                           .what = is_action ? action_text(*entry) : entry->what,
                           .action = action_of(*entry, all)});
  }
  return result;
}

std::string encode(const LastOperations& operations) {
  std::string text = fmt::format("{}", operations.written_ms);
  for (const uint64_t count : operations.collectives) text += fmt::format(" {}", count);
  text += '\n';
  for (const Operation& o : operations.list) {
    text += fmt::format("{} {} {} {} {} {} {} {:d} {}\t{}\n", o.sequence, static_cast<int>(o.axis),
                        o.nth, o.peer, o.bytes, o.age_ns, o.took_ns, o.awaited, o.what, o.action);
  }
  return text;
}

LastOperations decode_operations(const std::string& text) {
  LastOperations result;
  std::istringstream in(text);
  in >> result.written_ms;
  for (uint64_t& count : result.collectives) in >> count;
  for (Operation o; in >> o.sequence;) {
    int axis = 0;
    in >> axis >> o.nth >> o.peer >> o.bytes >> o.age_ns >> o.took_ns >> o.awaited;
    o.axis = static_cast<Axis>(axis);
    in.get();
    std::getline(in, o.what, '\t');
    std::getline(in, o.action);
    result.list.push_back(o);
  }
  return result;
}

std::string named(int rank, const std::string& place) {
  return place.empty() ? fmt::format("rank {}", rank) : fmt::format("rank {} ({})", rank, place);
}

std::string report(const std::string& heading, const std::vector<RankChapter>& ranks) {
  std::string text = fmt::format(
      "{}\n\n{}\n"
      "Each rank's last {} operations follow, newest last, as of its last beat. One that runs\n"
      "stays in the list, however old. Its number counts what the rank has begun; \"tp 812\" is "
      "the\n"
      "812th collective over tp, the same one on every rank of a group. A * marks where the ranks\n"
      "of a group differ: begun here and not there, ended here and not there, or not the same.\n",
      heading, table_of_counts(ranks), kOperationsKept);
  for (const RankChapter& rank : ranks) {
    text += fmt::format("\n{}, {}\n", named(rank.rank, rank.place), rank.standing);
    if (rank.operations.list.empty()) {
      text += rank.last_seen.empty()
                  ? "  no operation of it is known\n"
                  : fmt::format("  the last operation seen of it was {}\n", rank.last_seen);
      continue;
    }
    text += fmt::format("  {:>9} {:>12} {:>13} {:>10} {:>13}  {}\n", "number", "begun", "state",
                        "bytes", "n-th", "operation");
    for (const Operation& operation : rank.operations.list) {
      const bool marked = is_compared(operation) &&
                          std::any_of(ranks.begin(), ranks.end(), [&](const RankChapter& other) {
                            return share_group(rank.place, other.place, operation.axis) &&
                                   differs(operation, other);
                          });
      text += line_of(operation, rank.seconds_ago, marked);
    }
  }
  return text;
}

std::string write_report(const std::string& folder, const std::string& text) {
  std::error_code ignored;  // what cannot be made cannot be written to, which is said below
  std::filesystem::create_directories(folder, ignored);
  std::string path;
  std::FILE* file = nullptr;
  for (int i = 1; file == nullptr; ++i) {
    path = fmt::format("{}/operations.{}.txt", folder, i);
    file = std::fopen(path.c_str(), "wxe");  // x: only if there is no such file
    if (file == nullptr && errno != EEXIST)
      throw run_error("cannot write {}: {}", path, strerror(errno));
  }
  const std::string dated =
      fmt::format("{:%Y-%m-%d %H:%M:%S}\n{}", fmt::localtime(std::time(nullptr)), text);
  const bool written = std::fwrite(dated.data(), 1, dated.size(), file) == dated.size();
  if (std::fclose(file) != 0 || !written)
    throw run_error("cannot write {}: {}", path, strerror(errno));
  return path;
}

std::string where_reported(const std::string& path) {
  return "the last operations of every rank are in " + path;
}

void answer_report_request(const std::string& folder, const std::string& text) {
  std::string line;
  try {
    line = where_reported(write_report(folder, text));
  } catch (const RunError& error) {
    line = error.what();
  }
  log::raw(line + "\n");
}

}  // namespace picotron
